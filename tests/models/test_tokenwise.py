"""Linear layers, norms, activations: gradients, and what these keep of the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.attention import softmax
from mim_jax.models.tokenwise import ACTIVATIONS, layer_norm, product

RNG = np.random.default_rng(0)


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
def test_a_linear_layer_is_the_product_and_no_gradient_is_transposed(x, kernel, axes, formula):
    x, kernel = drawn(*x), drawn(*kernel)

    def ours(x, kernel):
        return product(x, kernel, axes)

    expected, pull_expected = jax.vjp(lambda x, k: jnp.einsum(formula, x, k), x, kernel)
    found, pull = jax.vjp(ours, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    cotangent = drawn(*expected.shape)
    for one, other in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert ' transpose[' not in str(jax.make_jaxpr(pull)(cotangent))


@pytest.mark.parametrize('name', list(ACTIVATIONS))
def test_activations_keep_only_what_went_in(name):
    assert kept(ACTIVATIONS[name], drawn(3, 4)) == [(3, 4)]


def test_norms_keep_only_what_went_in_and_their_parameters():
    norm = layer_norm(1e-6, 'float32', None)
    x = drawn(3, 4)
    variables = norm.init(jax.random.key(0), x)
    assert set(variables['params']) == {'scale', 'bias'}
    left = kept(lambda x: norm.apply(variables, x), x)
    assert [shape for shape in left if len(shape) > 1] == [(3, 4)]


def test_softmax_keeps_only_its_result_and_has_the_usual_gradient():
    x, cotangent = drawn(3, 4), drawn(3, 4)
    assert kept(softmax, x) == [(3, 4)]
    found, pull = jax.vjp(softmax, x)
    expected, pull_expected = jax.vjp(jax.nn.softmax, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(*pull(cotangent), *pull_expected(cotangent), rtol=1e-5, atol=1e-7)
