"""Images as spectra: the Fourier transform, how far a frequency is from the mean, and a distance
between images that is taken frequency by frequency.

The transform is two products with matrices. XLA knows no way to split an FFT over devices: it
gathers the whole batch on each of them; a product stays where its images are, and 224 x 224 pixels
cost less than a hundredth of a ViT-B.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# Added to |z|^2 before the root, which has no gradient at 0 (as the released code of MFM).
SQUARE_EPS = 1e-12


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


@dataclasses.dataclass(frozen=True)
class SpectrumDistance:
    """Distance |P - T|^gamma of the spectra of two images at every frequency.

    gamma: exponent of the distance.
    focal: weighs every frequency by its own distance to this power, divided by the largest
      (constant for the gradient), so that the hard ones count most; None: all count alike.
    focal_log: the logarithm of 1 + that power instead.
    focal_over: the largest is that of each image and channel, or that of the whole batch.
    average: the spectra of the batch are averaged first, and compared as one.
    parts: the image is cut into so many parts per side, each with a spectrum of its own.

    Source: MFM (Xie et al., ICLR 2023) and its released code; the weights are those of the focal
    frequency loss (Jiang et al., ICCV 2021).
    """

    gamma: float = 1.0
    focal: float | None = None
    focal_log: bool = False
    focal_over: Literal['image', 'batch'] = 'image'
    average: bool = False
    parts: int = 1

    def __post_init__(self):
        if not self.gamma > 0:
            raise ValueError(f'gamma = {self.gamma} must be above 0.')
        if self.focal is not None and not self.focal > 0:
            raise ValueError(f'focal = {self.focal} must be above 0; none turns it off.')
        if self.parts < 1:
            raise ValueError(f'parts = {self.parts} must be at least 1.')

    @property
    def over_batch(self) -> bool:
        """Whether the distance of an image depends on the others of its batch."""
        return self.average or (self.focal is not None and self.focal_over == 'batch')

    def __call__(self, prediction, target):
        """Images [B,H,W,C] to float32 [B,P,h,w,C] for P = parts^2 parts of (h, w); with `average`
        B is 1.
        """
        spectra = [spectrum(cut(x.astype(jnp.float32), self.parts)) for x in (prediction, target)]
        if self.average:
            spectra = [s.mean(axis=0, keepdims=True) for s in spectra]
        difference = spectra[0] - spectra[1]
        squares = difference.real**2 + difference.imag**2
        distances = jnp.sqrt(squares + SQUARE_EPS) ** self.gamma
        return distances if self.focal is None else distances * self._focus(squares)

    def _focus(self, squares):
        """Weights in [0, 1] of all frequencies."""
        weights = jnp.sqrt(jax.lax.stop_gradient(squares)) ** self.focal
        if self.focal_log:
            weights = jnp.log1p(weights)
        axes = (2, 3) if self.focal_over == 'image' else None
        largest = weights.max(axis=axes, keepdims=True)
        return jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1.0), 0.0)


def cut(images, parts):
    """Images [B,H,W,C] as `parts` by `parts` pieces each, [B,parts^2,H/parts,W/parts,C]."""
    batch, height, width, channels = images.shape
    pieces = images.reshape(batch, parts, height // parts, parts, width // parts, channels)
    return pieces.swapaxes(2, 3).reshape(batch, parts**2, height // parts, width // parts, channels)


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
