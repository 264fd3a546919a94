"""Attention to a memory: the module, the block, CroCo's decoder, against blocks in NumPy."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax import placement, sharding
from mim_jax.models import CrossDecoder
from mim_jax.models.attention import CrossAttention
from mim_jax.models.blocks import CrossBlock, drop_path_factors, stacked_blocks
from mim_jax.models.positions import sincos_table

_spec = importlib.util.spec_from_file_location('reference', Path(__file__).parent / 'reference.py')
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(2, 3, 8)).astype(np.float32)
MEMORY = RNG.normal(size=(2, 8, 12)).astype(np.float32)
DECODER = CrossDecoder(width=16, depth=2, heads=4)


def drawn(init):
    """Random values in place of those of the abstract `init`."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(init)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.3, s.shape).astype(s.dtype), shapes)


@pytest.mark.parametrize('qkv_bias', ['all', 'qv', 'none'])
def test_queries_and_memory_may_differ_in_width(qkv_bias):
    module = CrossAttention(heads=2, qkv_bias=qkv_bias)
    params = drawn(lambda: module.init(jax.random.key(0), TOKENS, MEMORY))
    biases = {name for name, part in params['params'].items() if 'bias' in part}
    by_choice = {'all': {'query', 'key', 'value'}, 'qv': {'query', 'value'}, 'none': set()}
    assert biases == by_choice[qkv_bias] | {'out'}
    bias = RNG.normal(size=(1, 2, 3, 8)).astype(np.float32)
    found = jax.jit(module.apply)(params, TOKENS, MEMORY, bias)
    for image in range(2):
        expected = reference.cross_attention(
            np.float64(TOKENS[image]), np.float64(MEMORY[image]), params['params'], bias[0]
        )
        np.testing.assert_allclose(found[image], expected, atol=1e-5)


def blocks(depth=2, **options):
    """A module of (tokens, memory, keep): stacked CrossBlocks."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, memory, keep=None):
            stack = stacked_blocks(depth, block=CrossBlock, heads=2, **options)
            return stack(x, memory=memory, keep=keep)[0]

    return Stack()


def test_stacked_cross_blocks_scanned_unrolled_and_rematerialised():
    params = drawn(lambda: blocks().init(jax.random.key(0), TOKENS, MEMORY))
    stack = params['params']['blocks']
    names = {'attention', 'cross_attention', 'mlp', 'norm1', 'norm2', 'norm3', 'norm_memory'}
    assert set(stack) == names
    assert stack['cross_attention']['key']['kernel'].shape == (2, 12, 2, 4)
    for options in ({}, {'scan': False}, {'remat': 'full'}):
        found = jax.jit(blocks(**options).apply)(params, TOKENS, MEMORY)
        for image in range(2):
            x = np.float64(TOKENS[image])
            for i in range(2):
                p = jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), stack)
                x = reference.cross_block(x, np.float64(MEMORY[image]), p)
            np.testing.assert_allclose(found[image], x, atol=1e-4)


def test_drop_path_has_three_branches_and_without_them_nothing_happens():
    params = drawn(lambda: blocks().init(jax.random.key(0), TOKENS, MEMORY))
    keys = jax.random.split(jax.random.key(0), 2)
    keep = drop_path_factors(keys, rate=0.5, depth=2, branches=3)
    assert keep.shape == (2, 3, 2)
    apply = jax.jit(blocks().apply)
    np.testing.assert_array_equal(apply(params, TOKENS, MEMORY, 0 * keep), TOKENS)
    whole = apply(params, TOKENS, MEMORY)
    np.testing.assert_allclose(apply(params, TOKENS, MEMORY, 0 * keep + 1), whole, atol=1e-6)


def test_split_over_tensor_and_fsdp_gives_what_one_device_gives():
    config = sharding.MeshConfig(data=2, fsdp=2, tensor=2, min_shard_size=2 * 8 * 8)
    mesh = sharding.make_mesh(config)
    params = drawn(lambda: blocks().init(jax.random.key(0), TOKENS, MEMORY))
    shardings = placement.state_shardings(params, mesh, config)
    specs = shardings['params']['blocks']['cross_attention']
    for name in ('query', 'key', 'value'):
        assert specs[name]['kernel'].spec == P(None, 'fsdp', 'tensor', None)
    assert specs['out']['kernel'].spec == P(None, 'tensor', None, 'fsdp')

    def gradient(params, tokens, memory):
        return jax.grad(lambda p: (blocks().apply(p, tokens, memory) ** 2).mean())(params)

    split = jax.tree.map(jax.device_put, params, shardings)
    tokens, memory = (np.concatenate([x, 2 * x]) for x in (TOKENS, MEMORY))
    on_mesh = jax.device_put((tokens, memory), sharding.batch_sharding(mesh))
    found = jax.jit(gradient)(split, *on_mesh)
    expected = jax.jit(gradient)(params, tokens, memory)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, expected)


@pytest.mark.parametrize('with_class_token', [False, True])
def test_decoder_is_crocos(with_class_token):
    """Mask tokens at hidden places, one table and one linear layer for both images."""
    ids, grid, memory_grid = np.array([[5, 0, 2], [1, 3, 4]]), (2, 3), (1, 4)
    memory = RNG.normal(size=(2, 4, 8)).astype(np.float32)
    class_token = RNG.normal(size=(2, 8)).astype(np.float32) if with_class_token else None
    variables = drawn(lambda: DECODER.init(jax.random.key(0), TOKENS, grid=grid, features=5))
    call = dict(grid=grid, features=5, memory_grid=memory_grid, class_token=class_token)
    decode = jax.jit(lambda x, y: DECODER.apply(variables, x, visible_ids=ids, memory=y, **call))
    found = decode(TOKENS, memory)
    assert found.dtype == jnp.float32
    p = jax.tree.map(np.float64, variables['params'])
    table = sincos_table(grid, 16).reshape(-1, 16)
    for image in range(2):
        x = np.tile(p['mask_token'], (6, 1))
        for place, token in zip(ids[image], TOKENS[image], strict=True):
            x[place] = reference.linear(token, p['embed'])
        x = x + table
        if with_class_token:
            x = np.concatenate([reference.linear(class_token[image], p['embed'])[None], x])
        other = reference.linear(memory[image], p['embed'])
        other = other + sincos_table(memory_grid, 16).reshape(-1, 16)
        for i in range(2):
            block = jax.tree.map(lambda leaf, i=i: leaf[i], p['blocks'])
            x = reference.cross_block(x, other, block)
        x = reference.linear(reference.norm(x[-6:], p['norm']), p['predict'])
        np.testing.assert_allclose(found[image], x, atol=2e-4)


def test_the_memory_lies_on_the_same_grid_unless_another_is_given():
    ids, memory = np.array([[5, 0, 2]]), TOKENS[:1].repeat(2, axis=1)
    variables = drawn(lambda: DECODER.init(jax.random.key(0), TOKENS, grid=(2, 3), features=5))
    call = dict(visible_ids=ids, grid=(2, 3), features=5, memory=memory)
    same = DECODER.apply(variables, TOKENS[:1], **call)
    stated = DECODER.apply(variables, TOKENS[:1], **call, memory_grid=(2, 3))
    np.testing.assert_array_equal(same, stated)


def test_the_decoders_defaults_are_crocos():
    fields = dataclasses.asdict(CrossDecoder())
    assert (fields['width'], fields['depth'], fields['heads']) == (512, 8, 16)
