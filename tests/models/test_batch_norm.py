"""Batch norm against NumPy: of the batch in hand, and by running averages."""

import jax
import numpy as np
import pytest

from mim_jax.models.batch_norm import BatchNorm

X = np.random.default_rng(0).normal(3, 2, (2, 5, 3, 4)).astype(np.float32)


@pytest.mark.parametrize('affine', [True, False])
def test_by_the_batch_in_hand(affine):
    module = BatchNorm(affine=affine)
    params = {'scale': np.float32([1, 2, 3, 4]), 'bias': np.float32([0, 1, 0, -1])}
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    assert set(shapes) == ({'params'} if affine else set())
    assert set(shapes.get('params', {})) == (set(params) if affine else set())
    expected = (X - X.mean((0, 1, 2))) / np.sqrt(X.var((0, 1, 2)) + 1e-5)
    if affine:
        expected = expected * params['scale'] + params['bias']
    found = module.apply({'params': params} if affine else {}, X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_running_averages_take_the_unbiased_variance():
    module = BatchNorm(affine=False, running=True, eps=1e-6)
    variables = module.init(jax.random.key(0), X, train=False)
    mean, variance = np.zeros(4), np.ones(4)
    for x in (X[0], X[1]):
        found, variables = module.apply(variables, x, mutable=['state'])
        expected = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        mean = 0.9 * mean + 0.1 * x.mean((0, 1))
        variance = 0.9 * variance + 0.1 * x.var((0, 1), ddof=1)
    found = module.apply(variables, X, train=False)
    expected = (X - mean) / np.sqrt(variance + 1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
