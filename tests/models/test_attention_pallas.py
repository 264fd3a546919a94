"""Attention in one kernel: interpreted, against the plain path; and compiled for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import flops, sharding
from mim_jax.errors import UserError
from mim_jax.models.attention import KERNELS, attend
from mim_jax.models.attention_pallas import pallas_attention
from mim_jax.models.vit import ViT
from mim_jax.sharding import MeshConfig

INTERPRET = jax.default_backend() != 'tpu'
interpreted = functools.partial(pallas_attention, interpret=INTERPRET)


def both(attention, cotangent, q, k, v, bias=None):
    """The result and the gradients of all arguments."""
    arguments = (q, k, v) if bias is None else (q, k, v, bias)
    result, pull = jax.vjp(lambda *x: attention(*x[:3], bias=x[3] if x[3:] else None), *arguments)
    return result, *pull(cotangent)


def example(batch, queries, keys, heads, width, biases, dtype=jnp.float32):
    rng = np.random.default_rng([queries, keys])
    shapes = [(batch, length, heads, width) for length in (queries, queries, keys, keys)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    if biases:
        arrays.append(jnp.asarray(rng.normal(size=(biases, heads, queries, keys)), jnp.float32))
    return arrays


# In the second two heads of four at once, in the third all three.
SIZES = {
    'self-attention': (2, 17, 17, 2, 8, 1),
    'a bias of every image, fewer queries': (3, 5, 9, 4, 64, 3),
    'no bias': (2, 7, 4, 3, 64, 0),
}


@pytest.mark.parametrize('size', SIZES)
def test_result_and_gradients_are_those_of_attention(size):
    arrays = example(*SIZES[size])
    found, expected = (jax.jit(functools.partial(both, f))(*arrays) for f in (interpreted, attend))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_in_bfloat16_it_is_off_by_what_bfloat16_is():
    arrays = example(2, 17, 17, 2, 8, 1, jnp.bfloat16)
    found = jax.jit(functools.partial(both, interpreted))(*arrays)
    exact = jax.jit(functools.partial(both, attend))(*(x.astype(jnp.float32) for x in arrays))
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4 + [jnp.float32]
    for mine, other in zip(found, exact, strict=True):
        # Two roundings of 2**-9: of the weights (or of the logits' gradient), and of the result.
        assert jnp.linalg.norm(mine - other) < 2**-8 * jnp.linalg.norm(other)


@pytest.mark.slow
@pytest.mark.parametrize('biases', [1, 8])
def test_every_device_computes_its_own_images_and_heads(biases):
    arrays = example(8, 6, 6, 2, 8, biases)
    expected = jax.jit(functools.partial(both, attend))(*arrays)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    of_bias = jax.NamedSharding(mesh, jax.P(('data', 'fsdp') if biases > 1 else None, 'tensor'))
    places = [split, split, split, split, of_bias]
    function = jax.jit(
        sharding.on_mesh(functools.partial(both, interpreted), mesh), out_shardings=tuple(places)
    )
    program = function.lower(*jax.device_put(arrays, places)).compile()
    for kind in ('all-gather', 'all-to-all', 'collective-permute'):
        assert f'{kind}(' not in program.as_text()
    # What images share is summed over them; of images apart no device asks another.
    assert ('all-reduce(' in program.as_text()) == (biases == 1)
    for mine, theirs in zip(program(*jax.device_put(arrays, places)), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_what_does_not_divide_is_whole_on_every_device():
    arrays = example(3, 4, 4, 3, 8, 1)
    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=2))
    everywhere = jax.device_put(arrays, sharding.replicated(mesh))
    found = jax.jit(sharding.on_mesh(functools.partial(both, interpreted), mesh))(*everywhere)
    expected = jax.jit(functools.partial(both, attend))(*arrays)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_its_products_are_counted_on_any_mesh():
    arrays = example(4, 6, 6, 4, 64, 1)[:3]
    counted = flops.matmul_flops(jax.make_jaxpr(attend)(*arrays))
    for axes in (dict(data=1), dict(data=2, tensor=2)):
        mesh = sharding.make_mesh(MeshConfig(**axes))
        assert (
            flops.matmul_flops(jax.make_jaxpr(sharding.on_mesh(interpreted, mesh))(*arrays))
            == counted
        )


def test_a_model_with_it_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(sharding, 'device_kind', lambda: 'NVIDIA H200')
    fields = dict(patch_size=(8, 8), width=32, depth=1, heads=2, attention_kernel='pallas')
    with pytest.raises(ValueError, match="'pallas' drops no weights: set attention_dropout to 0"):
        ViT(**fields, attention_dropout=0.1)
    with pytest.raises(UserError, match="is for TPUs, and this is 'NVIDIA H200': set it to 'xla'"):
        jax.eval_shape(ViT(**fields).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    q = jax.ShapeDtypeStruct((1, 1025, 12, 64), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((1, 12, 1025, 1025), jnp.float32)
    interpreted = functools.partial(pallas_attention, interpret=True)
    jax.eval_shape(interpreted, q, q, q)
    with pytest.raises(UserError, match='1025 x 1025 of them take too much with a bias'):
        jax.eval_shape(interpreted, q, q, q, bias=bias)


@pytest.mark.slow
def test_it_compiles_for_tpus():
    pytest.importorskip('libtpu', reason='libtpu is not installed')
    from mim_jax.preflight import topology

    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=2), topology.devices('v5e:2x2'))
    split = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    of_bias = jax.NamedSharding(mesh, jax.P(None, 'tensor'))
    q = jax.ShapeDtypeStruct((8, 197, 12, 64), jnp.bfloat16, sharding=split)
    bias = jax.ShapeDtypeStruct((1, 12, 197, 197), jnp.float32, sharding=of_bias)
    function = sharding.on_mesh(functools.partial(both, KERNELS['pallas']), mesh)
    program = jax.jit(function).lower(q, q, q, q, bias).compile().as_text()
    assert program.count('tpu_custom_call') == 2
    assert 'all-gather' not in program
