"""Spectra and their distance against NumPy's FFT and plain loops."""

import jax
import numpy as np
import pytest

from mim_jax import frequencies
from mim_jax.frequencies import SpectrumDistance

RNG = np.random.default_rng(0)
IMAGES, OTHERS = RNG.normal(size=(2, 3, 12, 8, 3)).astype(np.float32)


def fft(images):
    return np.fft.fft2(np.float64(images), axes=(-3, -2), norm='ortho')


def test_the_spectrum_is_the_orthonormal_fft_and_has_an_inverse():
    spectra = frequencies.spectrum(IMAGES)
    assert spectra.dtype == np.complex64
    np.testing.assert_allclose(spectra, fft(IMAGES), atol=1e-5)
    np.testing.assert_allclose(frequencies.image_of(spectra), IMAGES, atol=1e-5)


@pytest.mark.parametrize('size', [(8, 8), (7, 7), (12, 8)])
def test_radii_are_distances_from_the_middle_of_a_shifted_spectrum(size):
    expected = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            # Cycles per pixel, on the scale of the shorter side.
            down = (row - size[0] // 2) / size[0] * min(size)
            across = (column - size[1] // 2) / size[1] * min(size)
            expected[row, column] = (down**2 + across**2) ** 0.5
    np.testing.assert_allclose(np.fft.fftshift(frequencies.radii(size)), expected)


@pytest.mark.parametrize('gamma', [1.0, 2.0])
def test_the_distance_at_every_frequency(gamma):
    found = SpectrumDistance(gamma=gamma)(IMAGES, OTHERS)
    assert found.shape == (3, 1, 12, 8, 3) and found.dtype == np.float32
    difference = fft(IMAGES) - fft(OTHERS)
    expected = np.sqrt(difference.real**2 + difference.imag**2 + 1e-12) ** gamma
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('log', [False, True])
@pytest.mark.parametrize('over', ['image', 'batch'])
def test_the_focal_weights(over, log):
    distance = SpectrumDistance(focal=0.5, focal_over=over, focal_log=log)
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
    plain, focal = SpectrumDistance(), SpectrumDistance(focal=1.0)
    difference = np.abs(fft(IMAGES) - fft(OTHERS))
    weights = difference / difference.max(axis=(1, 2), keepdims=True)
    weights = np.float32(weights)[:, None]
    found = jax.grad(lambda x: focal(x, OTHERS).sum())(IMAGES)
    expected = jax.grad(lambda x: (plain(x, OTHERS) * weights).sum())(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_equal_images_have_no_distance_and_finite_gradients():
    distance = SpectrumDistance(focal=1.0)
    value, gradient = jax.value_and_grad(lambda x: distance(x, IMAGES).sum())(IMAGES)
    assert value == 0 and np.isfinite(gradient).all()


def test_the_spectra_of_a_batch_can_be_averaged():
    distance = SpectrumDistance(average=True)
    found = distance(IMAGES, OTHERS)
    expected = np.abs((fft(IMAGES) - fft(OTHERS)).mean(axis=0))
    assert distance.over_batch and found.shape == (1, 1, 12, 8, 3)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_parts_of_an_image_have_spectra_of_their_own():
    found = SpectrumDistance(parts=2)(IMAGES, OTHERS)
    assert found.shape == (3, 4, 6, 4, 3)
    for part in range(4):
        row, column = divmod(part, 2)
        piece = np.s_[:, 6 * row : 6 * row + 6, 4 * column : 4 * column + 4]
        expected = np.abs(fft(IMAGES[piece]) - fft(OTHERS[piece]))
        np.testing.assert_allclose(found[:, part], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'gamma': 0}, 'gamma = 0'), ({'focal': -1.0}, 'focal = -1.0'), ({'parts': 0}, 'parts = 0')],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpectrumDistance(**options)
