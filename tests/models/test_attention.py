"""Attention: the gradient of its logits, and the form that a fused kernel gets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mim_jax.errors import UserError
from mim_jax.models.attention import KERNELS, attend, inner_products
from mim_jax.models.attention_kernels import MULTIPLE, cudnn_attention, padded_attention
from mim_jax.models.vit import ViT

RNG = np.random.default_rng(0)


def drawn(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def plain(q, k):
    return jnp.einsum('bhqd,bhkd->bhqk', q, k, preferred_element_type=jnp.float32)


def both(function, cotangent, *inputs):
    result, pull = jax.vjp(function, *inputs)
    return result, *pull(cotangent)


@functools.partial(jax.jit, static_argnums=0)
def logits(function, cotangent, q, k):
    return both(function, cotangent, q, k)


def test_in_float32_gradients_of_the_logits_are_the_usual_ones_to_the_last_bit():
    q, k, cotangent = drawn(2, 3, 5, 8), drawn(2, 3, 7, 8), drawn(2, 3, 5, 7)
    for found, expected in zip(
        logits(inner_products, cotangent, q, k), logits(plain, cotangent, q, k), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_in_bfloat16_no_product_of_the_gradient_is_one_of_float32():
    q, k = drawn(2, 3, 5, 8, dtype=jnp.bfloat16), drawn(2, 3, 7, 8, dtype=jnp.bfloat16)
    cotangent = drawn(2, 3, 5, 7)
    found = jax.make_jaxpr(functools.partial(both, inner_products))(cotangent, q, k)
    products = [e for e in jax.tree.leaves(found.eqns) if e.primitive.name == 'dot_general']
    assert len(products) >= 2
    for product in products:
        assert {x.aval.dtype for x in product.invars} == {jnp.dtype('bfloat16')}
    results = zip(
        logits(inner_products, cotangent, q, k), logits(plain, cotangent, q, k), strict=True
    )
    (result, expected), *gradients = results
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, expected)
    for gradient, expected in gradients:
        assert gradient.dtype == jnp.bfloat16
        difference = np.float32(gradient) - np.float32(expected)
        # Two roundings of 2**-9: of the terms, and of the sum.
        assert np.linalg.norm(difference) < 2**-8 * np.linalg.norm(np.float32(expected))


@pytest.mark.parametrize(
    'queries, keys, with_bias', [(17, 17, True), (17, 17, False), (5, 9, True), (16, 16, False)]
)
def test_padded_attention_and_its_gradients_are_those_of_attention(queries, keys, with_bias):
    q, cotangent = drawn(2, 2, queries, 3, 8)
    k, v = drawn(2, 2, keys, 3, 8)
    bias = [drawn(1, 3, queries, keys)] if with_bias else []

    def of(attention):
        def function(q, k, v, bias=None):
            return attention(q, k, v, bias=bias)

        return jax.jit(functools.partial(both, function))(cotangent, q, k, v, *bias)

    padded = functools.partial(padded_attention, implementation='xla')
    for found, expected in zip(of(padded), of(attend), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_lengths_given_to_the_kernel_are_multiples(monkeypatch):
    seen = []

    def kernel(q, k, v, *, bias, implementation):
        seen.append((q.shape[1], k.shape[1], v.shape[1], bias.shape, bias.dtype, implementation))
        return q

    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    q, k = jnp.zeros((1, 5, 2, 8), jnp.bfloat16), jnp.zeros((1, 9, 2, 8), jnp.bfloat16)
    assert cudnn_attention(q, k, k).shape == q.shape
    assert MULTIPLE == 8
    assert seen == [(8, 16, 16, (1, 2, 8, 16), jnp.bfloat16, 'cudnn')]


def test_a_bias_of_every_image_is_refused():
    q = jnp.zeros((2, 5, 3, 8))
    with pytest.raises(UserError, match=r'only a bias that all images share .* not \[2, 3, 5, 5\]'):
        padded_attention(q, q, q, bias=jnp.zeros((2, 3, 5, 5)), implementation='xla')


def test_a_model_for_cudnn_is_refused_where_it_cannot_run(monkeypatch):
    fields = dict(patch_size=(8, 8), width=32, depth=1, heads=2, dtype='bfloat16')
    with pytest.raises(ValueError, match='needs dtype bfloat16, got float32'):
        ViT(**fields | {'dtype': 'float32'}, attention_kernel='cudnn')
    with pytest.raises(ValueError, match=r'multiple of 8 and at most 128, got width / heads = 4'):
        ViT(**fields | {'heads': 8}, attention_kernel='cudnn')
    model = ViT(**fields, attention_kernel='cudnn')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    with pytest.raises(UserError, match="for NVIDIA GPUs, and this is a tpu: set it to 'xla'"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_the_kernel_is_for_the_devices_of_the_mesh(monkeypatch):
    def kernel(q, k, v, **_):
        raise RuntimeError('cuDNN not found.')

    monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
    x = jnp.zeros((1, 8, 2, 8), jnp.bfloat16)
    for platform, said in {'gpu': 'needs the library', 'tpu': 'for NVIDIA GPUs'}.items():
        device = AbstractDevice(device_kind='any', num_cores=None, platform=platform)
        mesh = AbstractMesh((1,), ('data',), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh), pytest.raises(UserError, match=said):
            cudnn_attention(x, x, x)


@pytest.mark.parametrize('relative', ['none', 'both'])
def test_a_model_with_tokens_padded_for_cudnn_is_the_same(monkeypatch, relative):
    """Padded before queries, keys and values, cut after the projection: 10 tokens, then 16."""
    fields = dict(patch_size=(8, 8), width=32, depth=2, heads=2, relative_position=relative)
    images = jax.random.normal(jax.random.key(0), (2, 24, 24, 3))
    plain = ViT(**fields, dtype='bfloat16', attention_kernel='xla')
    variables = plain.init(jax.random.key(1), images)
    lengths = []

    def kernel(q, k, v, *, bias=None):
        lengths.append((q.shape[1], k.shape[1], None if bias is None else bias.shape))
        return padded_attention(q, k, v, bias=bias, implementation='xla')

    def found(model):
        def loss(variables):
            return jnp.sum(jnp.sin(model.apply(variables, images).tokens.astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss))(variables)

    expected = found(plain)
    monkeypatch.setitem(KERNELS, 'cudnn', kernel)
    mine = found(dataclasses.replace(plain, attention_kernel='cudnn'))
    assert set(lengths) == {(16, 16, (1, 2, 16, 16))}
    flat, flat_expected = (
        np.concatenate([np.ravel(np.float32(x)) for x in jax.tree.leaves(tree)])
        for tree in (mine, expected)
    )
    # bfloat16 on both sides, rounded at other places.
    assert np.linalg.norm(flat - flat_expected) < 1e-2 * np.linalg.norm(flat_expected)


def test_the_kernel_reaches_the_blocks_and_leaves_what_is_tapped(monkeypatch):
    model = ViT(patch_size=(8, 8), width=16, depth=2, heads=2, relative_position='both')
    images = jnp.zeros((2, 24, 16, 3))
    seen = []

    def kernel(q, k, v, *, bias=None):
        seen.append((q.shape, bias.shape))
        return padded_attention(q, k, v, bias=bias, implementation='xla')

    monkeypatch.setitem(KERNELS, 'xla', kernel)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    seen.clear()
    found = jax.eval_shape(
        functools.partial(model.apply, attention=(2,), queries_keys=(1,)), params, images
    )
    assert set(seen) == {((2, 7, 2, 8), (1, 2, 7, 7))}
    assert found.attention[2].shape == (2, 2, 6)
    assert [x.shape for x in found.queries_keys[1]] == [(2, 7, 2, 8)] * 2
