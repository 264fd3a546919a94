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


def test_cosine_of_a_zero_vector_is_zero_with_finite_gradient():
    zero = np.zeros(5, np.float32)
    value, gradient = jax.value_and_grad(lambda x: losses.cosine_distance(x, TARGET[0, 0]))(zero)
    assert value == 1.0
    assert np.abs(gradient).max() <= 1.0


def test_masked_mean():
    values, mask = RNG.normal(size=(2, 4)), RNG.random((2, 4)) < 0.5
    np.testing.assert_allclose(losses.masked_mean(values, mask), values[mask].mean(), rtol=1e-5)
    assert losses.masked_mean(values, np.zeros((2, 4), bool)) == 0


def test_the_border_of_a_picture_is_four_strips():
    a, b = RNG.normal(size=(2, 2, 7, 6, 3))
    expected = np.zeros(2)
    strips = np.s_[:2, :], np.s_[5:, :], np.s_[2:5, :1], np.s_[2:5, 5:]
    for image in range(2):
        for strip in strips:
            expected[image] += ((a[image] - b[image])[strip] ** 2).mean()
    np.testing.assert_allclose(losses.border_square(a, b, borders=(2, 1)), expected, rtol=1e-5)


def test_standardized_square_compares_with_values_of_mean_0_and_variance_1():
    scores, values = RNG.normal(size=(2, 3, 5))
    squares = losses.standardized_square(scores, values)
    assert squares.shape == (3, 5) and squares.dtype == np.float32
    for image in range(3):
        mean = sum(values[image]) / 5
        variance = sum((v - mean) ** 2 for v in values[image]) / 4
        for i in range(5):
            aim = (values[image, i] - mean) / (variance + 1e-6) ** 0.5
            np.testing.assert_allclose(squares[image, i], (scores[image, i] - aim) ** 2, rtol=1e-4)


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


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_contrast_tells_every_token_from_the_others_of_its_image(temperature):
    contrast = losses.TokenContrast(temperature)
    found, logits = contrast(PREDICTION, TARGET), contrast.logits(PREDICTION, TARGET)
    assert found.shape == (2, 3) and found.dtype == logits.dtype == np.float32
    for image in range(2):
        for i in range(3):
            p = PREDICTION[image, i].astype(np.float64)
            cosines = [p @ t / np.sqrt((p @ p) * (t @ t)) for t in TARGET[image]]
            chances = np.exp(np.array(cosines) / temperature)
            np.testing.assert_allclose(logits[image, i], np.log(chances), rtol=1e-4, atol=1e-5)
            expected = -np.log(chances[i] / chances.sum())
            np.testing.assert_allclose(found[image, i], expected, rtol=1e-4, atol=1e-5)


def test_standardised_tokens():
    tokens = np.asarray(losses.standardize_tokens(TARGET))
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-6)
    np.testing.assert_allclose(tokens.std(axis=-1), 1, rtol=1e-4)
    tokens = np.asarray(losses.standardize_tokens(TARGET, ddof=1))
    np.testing.assert_allclose(tokens.std(axis=-1, ddof=1), 1, rtol=1e-4)


def test_channels_over_the_tokens_of_an_image():
    tokens = np.random.default_rng(0).normal(3, 5, (2, 6, 4)).astype(np.float32)
    found = np.asarray(losses.standardize_channels(tokens))
    expected = (tokens - tokens.mean(axis=1, keepdims=True)) / tokens.std(
        axis=1, ddof=1, keepdims=True
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    same = np.ones((1, 5, 4), np.float32)
    gradient = jax.grad(lambda x: losses.standardize_channels(x).sum())(same)
    assert np.isfinite(gradient).all()


IMAGES, OTHERS = np.random.default_rng(0).normal(size=(2, 3, 12, 8, 3)).astype(np.float32)


def fft(images):
    return np.fft.fft2(np.float64(images), axes=(-3, -2), norm='ortho')


@pytest.mark.parametrize('gamma', [1.0, 2.0])
def test_the_distance_at_every_frequency(gamma):
    found = losses.SpectrumDistance(gamma=gamma)(IMAGES, OTHERS)
    assert found.shape == (3, 1, 12, 8, 3) and found.dtype == np.float32
    difference = fft(IMAGES) - fft(OTHERS)
    expected = np.sqrt(difference.real**2 + difference.imag**2 + 1e-12) ** gamma
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize('over', ['image', 'batch'])
def test_the_focal_weights(over, log):
    distance = losses.SpectrumDistance(focal=0.5, focal_over=over, focal_log=log)
    assert distance.over_batch == (over == 'batch')
    sizes = np.abs(fft(IMAGES) - fft(OTHERS))
    weights = np.log(1 + sizes**0.5) if log else sizes**0.5
    expected = np.zeros_like(sizes)
    for image in range(3):
        for channel in range(3):
            largest = weights[image, ..., channel].max() if over == 'image' else weights.max()
            one = weights[image, ..., channel] / largest
            expected[image, ..., channel] = one * sizes[image, ..., channel]
    found = distance(IMAGES, OTHERS)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_the_focal_weights():
    plain, focal = losses.SpectrumDistance(), losses.SpectrumDistance(focal=1.0)
    difference = np.abs(fft(IMAGES) - fft(OTHERS))
    weights = difference / difference.max(axis=(1, 2), keepdims=True)
    weights = np.float32(weights)[:, None]
    found = jax.grad(lambda x: focal(x, OTHERS).sum())(IMAGES)
    expected = jax.grad(lambda x: (plain(x, OTHERS) * weights).sum())(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_equal_images_have_no_distance_and_finite_gradients():
    distance = losses.SpectrumDistance(focal=1.0)
    value, gradient = jax.value_and_grad(lambda x: distance(x, IMAGES).sum())(IMAGES)
    assert value == 0 and np.isfinite(gradient).all()


def test_the_spectra_of_a_batch_can_be_averaged():
    distance = losses.SpectrumDistance(average=True)
    found = distance(IMAGES, OTHERS)
    expected = np.abs((fft(IMAGES) - fft(OTHERS)).mean(axis=0))
    assert distance.over_batch and found.shape == (1, 1, 12, 8, 3)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_parts_of_an_image_have_spectra_of_their_own():
    found = losses.SpectrumDistance(parts=2)(IMAGES, OTHERS)
    assert found.shape == (3, 4, 6, 4, 3)
    for part in range(4):
        row, column = divmod(part, 2)
        piece = np.s_[:, 6 * row : 6 * row + 6, 4 * column : 4 * column + 4]
        expected = np.abs(fft(IMAGES[piece]) - fft(OTHERS[piece]))
        np.testing.assert_allclose(found[:, part], expected, rtol=1e-4, atol=1e-5)
