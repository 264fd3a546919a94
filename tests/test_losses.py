"""Distances and reductions against NumPy loops."""

import jax
import numpy as np
import pytest

from mim_jax import losses

RNG = np.random.default_rng(0)
PREDICTION, TARGET = RNG.normal(scale=3, size=(2, 2, 3, 5)).astype(np.float32)


def by_hand(p, t, distance):
    if distance == 'cosine':
        return 1 - p @ t / np.sqrt((p @ p) * (t @ t))
    d = np.abs(p - t)
    if distance == 'l1':
        return d.mean()
    if distance == 'l2':
        return (d**2).mean()
    return np.mean([0.25 * x * x if x < 2 else x - 1 for x in d])


@pytest.mark.parametrize('distance', losses.DISTANCES)
def test_token_distances(distance):
    values = losses.DISTANCES[distance]()(PREDICTION, TARGET)
    assert values.shape == (2, 3) and values.dtype == np.float32
    for b in range(2):
        for n in range(3):
            expected = by_hand(PREDICTION[b, n], TARGET[b, n], distance)
            np.testing.assert_allclose(values[b, n], expected, rtol=1e-5, atol=1e-6)


def test_half_precision_inputs_are_compared_in_float32():
    half = PREDICTION.astype(np.float16)
    expected = losses.L2()(half.astype(np.float32), TARGET)
    np.testing.assert_array_equal(losses.L2()(half, TARGET), expected)


def test_the_turn_of_smooth_l1_is_a_choice():
    zeros = np.zeros(4, np.float32)
    # Below beta x^2 / (2 beta), above it x - beta / 2.
    found = losses.SmoothL1(beta=0.5)(np.float32([0.25, 0.5, 1, 4]), zeros)
    np.testing.assert_allclose(found, np.mean([0.0625, 0.25, 0.75, 3.75]), rtol=1e-6)
    with pytest.raises(ValueError, match='beta = 0 must be above 0'):
        losses.SmoothL1(beta=0)


def test_cosine_of_a_zero_vector_is_zero_with_finite_gradient():
    zero = np.zeros(5, np.float32)
    value, gradient = jax.value_and_grad(lambda x: losses.cosine_distance(x, TARGET[0, 0]))(zero)
    assert value == 1.0
    assert np.abs(gradient).max() <= 1.0


def test_masked_mean():
    values, mask = RNG.normal(size=(2, 4)), RNG.random((2, 4)) < 0.5
    np.testing.assert_allclose(losses.masked_mean(values, mask), values[mask].mean(), rtol=1e-5)
    assert losses.masked_mean(values, np.zeros((2, 4), bool)) == 0


def test_ranking_is_over_ordered_pairs_of_different_values():
    scores, values = RNG.normal(size=(2, 3, 5))
    values[0, 1] = values[0, 3]  # no pair of its own
    values[1] = 0.5  # no pair at all
    expected = np.zeros(3)
    for image in range(3):
        terms = []
        for i in range(5):
            for j in range(5):
                p = 1 / (1 + np.exp(scores[image, j] - scores[image, i]))
                if values[image, i] > values[image, j]:
                    terms.append(-np.log(p + 1e-6))
                if values[image, i] < values[image, j]:
                    terms.append(-np.log(1 - p + 1e-6))
        expected[image] = np.mean(terms) if terms else 0
        assert len(terms) == [18, 0, 20][image]
    np.testing.assert_allclose(losses.ranking_loss(scores, values), expected, rtol=1e-5)


def test_standardised_tokens():
    tokens = np.asarray(losses.standardize_tokens(TARGET))
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(tokens.std(axis=-1), 1, rtol=1e-4)
    tokens = np.asarray(losses.standardize_tokens(TARGET, ddof=1))
    np.testing.assert_allclose(tokens.std(axis=-1, ddof=1), 1, rtol=1e-4)
