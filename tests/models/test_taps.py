"""What an encoder gives beside its output, against blocks in NumPy."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax import placement, sharding
from mim_jax.errors import UserError
from mim_jax.models import ViT
from mim_jax.models.hooks import TokenDropping

_spec = importlib.util.spec_from_file_location('reference', Path(__file__).parent / 'reference.py')
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

PLAIN = ViT(patch_size=(4, 4), width=16, depth=3, heads=2, num_registers=2)
RICH = dataclasses.replace(PLAIN, relative_position='both', layer_scale=0.3, qkv_bias='qv')
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)  # grid (2, 3)
VISIBLE = np.array([[5, 0, 2, 3], [1, 3, 4, 0]])
CONDITION = np.random.default_rng(3).normal(size=(2, 5)).astype(np.float32)
ALL = dict(layers=(1, 2, 3), attention=(1, 2, 3), queries_keys=(1, 2, 3))
STATIC = ('layers', 'attention', 'queries_keys')


@functools.partial(jax.jit, static_argnums=0, static_argnames=STATIC)
def encode(model, params, images=IMAGES, **options):
    return model.apply({'params': params}, images, **options)


@functools.cache
def params_of(model):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES))['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.3, s.shape).astype(s.dtype), shapes)


def blocks_by_hand(model, image, *, visible=None, condition=None):
    """(tokens [S,D], weights [heads,S,S], queries, keys) of every block, for one image."""
    params = jax.tree.map(np.float64, params_of(model))
    bias, own = None, [None] * model.depth
    if model.relative_position != 'none':
        tables = [params['relative_position']]
        tables += [
            jax.tree.map(lambda x, i=i: x[i], params['blocks']['relative_position'])
            for i in range(model.depth)
        ]
        bias, *own = (relative_bias(table, model, visible) for table in tables)
    x = reference.embed(model, params, image, visible)
    found = []
    for i in range(model.depth):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])
        total = None if bias is None else bias + own[i]
        found.append(reference.block(x, p, bias=total, condition=condition))
        x = found[-1][0]
    return found


def relative_bias(table, model, visible):
    """[heads,S,S] by a loop over pairs of tokens; registers have none."""
    places = np.arange(6) if visible is None else visible
    prefix = 1 + model.num_registers
    bias = np.zeros((model.heads, prefix + len(places), prefix + len(places)))
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            offset = table['patches'][a // 3 - b // 3 + 1, a % 3 - b % 3 + 2]
            bias[:, prefix + i, prefix + j] = offset
    bias[:, 0, prefix:] = table['class_token'][0][:, None]
    bias[:, prefix:, 0] = table['class_token'][1][:, None]
    bias[:, 0, 0] = table['class_token'][2]
    return bias


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('visible', [None, VISIBLE], ids=['whole', 'visible'])
@pytest.mark.parametrize('model', [PLAIN, RICH], ids=['plain', 'rich'])
def test_taps_are_those_of_a_plain_forward_pass(model, visible, scan):
    given = {} if visible is None else {'visible_ids': visible}
    encoded = encode(dataclasses.replace(model, scan=scan), params_of(model), **given, **ALL)
    for image in range(2):
        ids = None if visible is None else visible[image]
        by_hand = blocks_by_hand(model, IMAGES[image], visible=ids)
        for k, (x, weights, q, keys) in enumerate(by_hand, start=1):
            layer = encoded.layers[k]
            np.testing.assert_allclose(layer.class_token[image], x[0], atol=1e-4)
            np.testing.assert_allclose(layer.registers[image], x[1:3], atol=1e-4)
            np.testing.assert_allclose(layer.tokens[image], x[3:], atol=1e-4)
            np.testing.assert_allclose(encoded.attention[k][image], weights[:, 0, 3:], atol=1e-5)
            for ours, theirs in zip(encoded.queries_keys[k], (q, keys), strict=True):
                np.testing.assert_allclose(ours[image], theirs, atol=1e-4)


def test_only_what_is_asked_is_given_and_it_changes_nothing():
    params = params_of(RICH)
    plain = encode(RICH, params)
    assert (plain.layers, plain.attention, plain.queries_keys) == ({}, {}, {})
    asked = encode(RICH, params, attention=(3,), queries_keys=(1,))
    assert (set(asked.layers), set(asked.attention), set(asked.queries_keys)) == (set(), {3}, {1})
    np.testing.assert_allclose(asked.tokens, plain.tokens, atol=1e-6)


def stacked(jaxpr):
    """Shapes of what the scans of a program collect from their steps: other than those of a step,
    where what is carried on has the same.
    """
    return [
        v.aval.shape
        for equation in jaxpr.eqns
        if equation.primitive.name == 'scan'
        for v, of_step in zip(equation.outvars, equation.params['jaxpr'].out_avals, strict=True)
        if v.aval.shape != of_step.shape
    ]


def test_under_scan_nothing_is_collected_that_is_not_asked():
    def shapes(**asked):
        apply = functools.partial(PLAIN.apply, {'params': params_of(PLAIN)}, **asked)
        return stacked(jax.make_jaxpr(apply)(IMAGES).jaxpr)

    assert shapes() == []
    assert shapes(attention=(2,)) == [(3, 2, 2, 9)]  # depth, batch, heads, all tokens: one row
    assert shapes(layers=(1, 3)) == [(3, 2, 9, 16)]


def test_attention_is_float32_and_its_gradient_reaches_the_queries():
    half = dataclasses.replace(PLAIN, dtype='bfloat16', remat='full')

    def mass(params):
        return half.apply({'params': params}, IMAGES, attention=(1,)).attention[1].sum()

    assert encode(half, params_of(half), attention=(1,)).attention[1].dtype == jnp.float32
    gradient = jax.jit(jax.grad(mass))(params_of(half))
    assert np.abs(gradient['blocks']['attention']['qkv']['kernel'][0, :, 0]).max() > 0


@pytest.mark.parametrize('number', [0, 4])
@pytest.mark.parametrize('what', STATIC)
def test_blocks_that_do_not_exist_are_refused(what, number):
    with pytest.raises(ValueError, match=rf'{what} = \({number},\) is not among the blocks 1 to 3'):
        PLAIN.apply({'params': params_of(PLAIN)}, IMAGES, **{what: (number,)})


def test_attention_needs_a_class_token():
    with pytest.raises(ValueError, match='class_token=True'):
        dataclasses.replace(PLAIN, class_token=False).apply({}, IMAGES, attention=(1,))


@pytest.mark.parametrize(
    'changes', [{}, {'scan': False, 'remat': 'full'}, {'layer_scale': 0.3}], ids=str
)
def test_conditioned_blocks_are_those_of_dit(changes):
    model = dataclasses.replace(PLAIN, condition_width=5, **changes)
    params = params_of(model)
    assert set(params['blocks']) >= {'attention', 'mlp', 'modulation'}
    assert not {'norm1', 'norm2'} & set(params['blocks'])
    encoded = encode(model, params, condition=CONDITION, **ALL)
    for image in range(2):
        by_hand = blocks_by_hand(model, IMAGES[image], condition=np.float64(CONDITION[image]))
        for k, (x, weights, _, _) in enumerate(by_hand, start=1):
            np.testing.assert_allclose(encoded.layers[k].tokens[image], x[3:], atol=2e-4)
            np.testing.assert_allclose(encoded.attention[k][image], weights[:, 0, 3:], atol=1e-5)


def test_conditioned_blocks_start_as_the_identity():
    model = dataclasses.replace(PLAIN, condition_width=5)
    params = model.init(jax.random.key(0), IMAGES)['params']
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params['blocks']['modulation']))
    layers = encode(model, params, condition=CONDITION, layers=(1, 3)).layers
    chex.assert_trees_all_equal(layers[1], layers[3])


def test_a_condition_and_its_width_need_each_other():
    conditioned = dataclasses.replace(PLAIN, condition_width=5)
    with pytest.raises(UserError, match='condition_width = 5, but this method'):
        conditioned.apply({}, IMAGES)
    with pytest.raises(ValueError, match='width 5 needs a model'):
        PLAIN.apply({}, IMAGES, condition=CONDITION)


def test_taps_condition_and_hook_on_a_mesh():
    """Parameters and batch split over devices give what one device gives."""
    model = dataclasses.replace(RICH, condition_width=5)
    hook = TokenDropping((1, 1), prefix=model.prefix)
    images, condition = np.concatenate([IMAGES, -IMAGES]), np.concatenate([CONDITION, -CONDITION])
    expected = encode(model, params_of(model), images, condition=condition, hook=hook, **ALL)
    config = sharding.MeshConfig(data=2, fsdp=2, tensor=2, min_shard_size=2 * 5 * 16)
    mesh = sharding.make_mesh(config)
    places = placement.state_shardings(params_of(model), mesh, config)
    assert places['blocks']['modulation']['kernel'].spec == P(None, None, None, None, 'fsdp')
    params = jax.tree.map(jax.device_put, params_of(model), places)
    images, condition = jax.device_put((images, condition), sharding.batch_sharding(mesh))
    found = encode(model, params, images, condition=condition, hook=hook, **ALL)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), found, expected)
