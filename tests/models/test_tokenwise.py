"""Linear layers, norms, activations: gradients, and what these keep of the forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mim_jax.models.attention import softmax
from mim_jax.models.tokenwise import ACTIVATIONS, layer_norm, normalized, product

RNG = np.random.default_rng(0)
X, KERNEL = jnp.ones((2, 5, 6)), jnp.ones((6, 3, 2, 4))


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def kept(function, x):
    """Shapes of what the gradient takes from the forward pass."""
    return [leaf.shape for leaf in jax.tree.leaves(jax.vjp(function, x)[1])]


@pytest.mark.parametrize(
    ('x', 'kernel', 'axes', 'formula'),
    [
        ((2, 5, 6), (6, 7), 1, 'bsd,de->bse'),
        ((2, 5, 6), (6, 3, 2, 4), 1, 'bsd,dthk->bsthk'),
        ((2, 5, 2, 4), (2, 4, 6), 2, 'bshk,hkd->bsd'),
        ((6,), (6, 7), 1, 'd,de->e'),
    ],
)
def test_a_linear_layer_is_the_product_with_its_gradients(x, kernel, axes, formula):
    x, kernel = drawn(*x), drawn(*kernel)
    expected, pull_expected = jax.vjp(functools.partial(jnp.einsum, formula), x, kernel)
    found, pull = jax.vjp(lambda x, kernel: product(x, kernel, axes), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    cotangent = drawn(*expected.shape)
    for one, other in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def reshapes(platform, devices=1):
    device = AbstractDevice(device_kind='any', num_cores=None, platform=platform)
    mesh = AbstractMesh((devices,), ('data',), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return 'reshape' in str(jax.make_jaxpr(product, static_argnums=2)(X, KERNEL, 1))


def test_rows_are_one_axis_where_the_program_runs_on_one_cpu_and_nowhere_else():
    assert reshapes('cpu') and not reshapes('tpu') and not reshapes('cuda')
    assert not reshapes('cpu', devices=8)


def plain_gelu(x):
    y = x.astype(jnp.float32)
    return (y * jax.scipy.stats.norm.cdf(y)).astype(x.dtype)


def plain_norm(x, scale, bias):
    y = x.astype(jnp.float32)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-6)
    return (y * scale + bias).astype(x.dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', ['gelu', 'norm', 'norm without affine'])
def test_values_and_gradients_are_those_of_the_plain_formula(name, dtype):
    """Of gelu and LayerNorm, whose gradients are written out; mapped over, too."""
    x, cotangent = (drawn(2, 5, 7).astype(dtype) * 3 for _ in range(2))
    parameters = (drawn(7), drawn(7)) if name == 'norm' else ()

    def mine(x, *parameters):
        if name == 'gelu':
            return ACTIVATIONS['gelu'](x)
        norm = layer_norm(1e-6, dtype, None, affine=bool(parameters))
        return norm.apply({'params': dict(zip(('scale', 'bias'), parameters, strict=False))}, x)

    def plain(x, *parameters):
        return plain_gelu(x) if name == 'gelu' else plain_norm(x, *(parameters or (1.0, 0.0)))

    found, pull = jax.vjp(mine, x, *parameters)
    expected, pull_expected = jax.vjp(plain, x, *parameters)
    mapped = jax.vmap(mine, in_axes=(0, *(None for _ in parameters)))(x, *parameters)
    np.testing.assert_array_equal(mapped, found)
    # A rounding or two of the dtype, of results and of what is summed up.
    tolerance = {'float32': 2e-6, 'bfloat16': 2**-6}[dtype]
    compared = [(found, expected), *zip(pull(cotangent), pull_expected(cotangent), strict=True)]
    for one, other in compared:
        assert one.dtype == other.dtype
        one, other = np.float32(one), np.float32(other)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * abs(other).max())


def test_gradients_of_parameters_have_their_dtype():
    scale = jnp.ones(7, jnp.bfloat16)
    _, pull = jax.vjp(lambda s: normalized(drawn(3, 7), s, s, 1e-6, 'float32'), scale)
    assert pull(drawn(3, 7))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize('name', list(ACTIVATIONS))
def test_activations_keep_only_what_went_in(name):
    assert kept(ACTIVATIONS[name], drawn(3, 4)) == [(3, 4)]


def test_norms_keep_what_went_in_their_parameters_and_two_numbers_of_every_row():
    norm = layer_norm(1e-6, 'float32', None)
    x = drawn(3, 4)
    variables = norm.init(jax.random.key(0), x)
    assert set(variables['params']) == {'scale', 'bias'}
    left = kept(lambda x: norm.apply(variables, x), x)
    assert sorted(shape for shape in left if len(shape) > 1) == [(3, 1), (3, 1), (3, 4)]


def test_softmax_keeps_only_its_result_and_has_the_usual_gradient():
    x, cotangent = drawn(3, 4), drawn(3, 4)
    assert kept(softmax, x) == [(3, 4)]
    found, pull = jax.vjp(softmax, x)
    expected, pull_expected = jax.vjp(jax.nn.softmax, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(*pull(cotangent), *pull_expected(cotangent), rtol=1e-5, atol=1e-7)
