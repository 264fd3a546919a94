"""Spectra against NumPy's FFT and plain loops."""

import numpy as np
import pytest

from mim_jax import frequencies

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


def test_brightness_is_the_logarithm_below_the_largest_with_the_mean_in_the_middle():
    spectra, like = fft(IMAGES).astype(np.complex64), fft(OTHERS).astype(np.complex64)
    spectra[0, 1, 2] = 0
    shown = frequencies.brightness(spectra, like=like)
    assert shown.shape == (3, 12, 8, 1)
    for image in range(3):
        white = max(np.abs(like[image, r, c]).mean() for r in range(12) for c in range(8))
        for r in range(12):
            for c in range(8):
                value = max(np.abs(spectra[image, r, c]).mean() / white, 1e-6)
                expected = min(max(1 + np.log10(value) / 4, 0), 1)
                place = image, (r + 6) % 12, (c + 4) % 8, 0
                np.testing.assert_allclose(shown[place], expected, atol=1e-5)
