"""Images as spectra: the Fourier transform, and how far a frequency is from the mean.

The transform is two products with matrices. XLA knows no way to split an FFT over devices: it
gathers the whole batch on each of them; a product stays where its images are, and 224 x 224 pixels
cost less than a hundredth of a ViT-B.
"""

import jax
import jax.numpy as jnp
import numpy as np


def spectrum(images):
    """Orthonormal discrete Fourier transform, complex64, of images [...,H,W,C] over H and W.

    Element (0, 0) is the mean frequency; `jnp.fft.fftshift` brings it to the middle for the eye.
    """
    height, width = images.shape[-3:-1]
    return _transformed(images, _matrix(height), _matrix(width))


def image_of(spectra):
    """The inverse of `spectrum`, its real part: float32 [...,H,W,C]."""
    height, width = spectra.shape[-3:-1]
    return _transformed(spectra, _matrix(height).conj(), _matrix(width).conj()).real


def radii(image_size):
    """How far every frequency is from the mean, NumPy float64 [H,W], placed as in `spectrum`.

    In cycles along the shorter side, which for a square image are the pixels of its spectrum; a
    circle is one of equal wavelength in other images too.
    """
    height, width = image_size
    down, across = (np.fft.fftfreq(size) * min(image_size) for size in (height, width))
    return np.hypot(down[:, None], across)


def brightness(spectra, *, like):
    """Spectra [...,H,W,C] for the eye, float32 [...,H,W,1] in [0, 1]: mean of the channels, the
    mean frequency in the middle; logarithms, from the largest of `like` (white), spectra of the
    same shape, to a ten-thousandth of it (black).
    """
    values, white = (jnp.abs(x).mean(axis=-1, keepdims=True) for x in (spectra, like))
    white = jnp.maximum(white.max(axis=(-3, -2), keepdims=True), 1e-6)
    decades = jnp.log10(jnp.maximum(values / white, 1e-6))
    return jnp.fft.fftshift(jnp.clip(1 + decades / 4, 0, 1), axes=(-3, -2))


def _matrix(size):
    places = np.arange(size)
    # Taken modulo the size before it is scaled, the angle is exact.
    angles = -2j * np.pi * (np.outer(places, places) % size) / size
    return (np.exp(angles) / np.sqrt(size)).astype(np.complex64)


def _transformed(x, down, across):
    return jnp.einsum(
        'hy,...ywc,wx->...hxc',
        down,
        x.astype(jnp.complex64),
        across,
        precision=jax.lax.Precision.HIGHEST,
    )
