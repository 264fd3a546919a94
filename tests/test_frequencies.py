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
