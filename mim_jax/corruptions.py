"""How images are corrupted before a network restores them.

Each class in CORRUPTIONS is a config section and a function of per-image keys and images in [0, 1].
"""

import dataclasses
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp

from mim_jax.data.colors import smooth
from mim_jax.errors import UserError
from mim_jax.frequencies import image_of, radii, spectrum
from mim_jax.ranges import NotNegative, Positive, Range, Share, Side, check_ordered

FIELD = 'config.objective.corruption'


@flax.struct.dataclass
class Corrupted:
    """Corrupted images float32 [B,H,W,C], and the frequencies that are gone, `removed` [B,H,W]
    bool, placed as in `frequencies.spectrum` (None: no frequency is quite gone).
    """

    images: jax.Array
    removed: jax.Array | None = None


class Corruption:
    """What an objective asks of a corruption."""

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises UserError where images (height, width) are too small for it."""

    def __call__(self, keys: jax.Array, images: jax.Array) -> Corrupted:
        """Corrupts images [B,H,W,C] in [0, 1], each by the draws of its own key of `keys` [B]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FrequencyFilter(Corruption):
    """Keeps the low frequencies of an image, or the others; the result is cut to [0, 1].

    radius: frequencies nearer to the mean are low, in cycles along the image's shorter side
      (`frequencies.radii`), as MFM's 16 of 224.
    outer_radius: from there on frequencies count as low again, so that a band is removed or kept;
      None: no band.
    low_share: probability with which the low ones are kept.

    Source: MFM (Xie et al., ICLR 2023) and its released code.
    """

    radius: Positive = 16.0
    outer_radius: Positive | None = None
    low_share: Share = 0.5

    def __post_init__(self):
        if self.outer_radius is not None and self.outer_radius <= self.radius:
            raise ValueError(
                f'outer_radius = {self.outer_radius} must be above radius = {self.radius}.'
            )

    def check(self, image_size):
        if self.radius >= min(image_size) / 2:
            raise UserError(
                f'{FIELD}.radius = {self.radius}: images of {image_size[0]}x{image_size[1]} pixels '
                f'have {min(image_size) // 2} cycles along the shorter side at most; lower it.'
            )

    def __call__(self, keys, images):
        distance = radii(images.shape[1:3])
        high = distance >= self.radius
        if self.outer_radius is not None:
            high &= distance < self.outer_radius
        low_kept = jax.vmap(lambda key: jax.random.bernoulli(key, self.low_share))(keys)
        removed = jnp.where(low_kept[:, None, None], high, ~high)
        kept = jnp.where(removed[..., None], 0.0, spectrum(images))
        return Corrupted(jnp.clip(image_of(kept), 0.0, 1.0), removed)


@dataclasses.dataclass(frozen=True)
class LowResolution(Corruption):
    """Bicubic (PyTorch's, without antialiasing) to a `factor`-th of the size and back, each cut to
    [0, 1]. Source: the super-resolution task of MFM's released code.
    """

    factor: Annotated[int, Range(2, 2**15)] = 8

    def check(self, image_size):
        if self.factor > min(image_size):
            raise UserError(
                f'{FIELD}.factor = {self.factor}: of {image_size[0]}x{image_size[1]} pixels '
                'nothing would be left; lower it.'
            )

    def __call__(self, keys, images):
        batch, height, width, channels = images.shape
        for size in ((height // self.factor, width // self.factor), (height, width)):
            rule = jax.image.ResizeMethod.CUBIC_PYTORCH
            shape = (batch, *size, channels)
            images = jnp.clip(jax.image.resize(images, shape, rule, antialias=False), 0.0, 1.0)
        return Corrupted(images)


@dataclasses.dataclass(frozen=True)
class Blur(Corruption):
    """A Gaussian of deviation ~ U(sigma) in pixels, cut off at a width drawn from `sizes`; the
    image is reflected at its borders.

    Source: the deblurring task of MFM's released code, with the kernels that its ViT recipe uses
    (isotropic); the other kernels of that code are left out.
    """

    sigma: tuple[Positive, ...] = (5.0, 5.0)
    sizes: tuple[Side, ...] = (7, 9, 11, 13, 15, 17, 19, 21)

    def __post_init__(self):
        check_ordered(self, 'sigma')
        if not self.sizes or any(size % 2 == 0 for size in self.sizes):
            raise ValueError(f'sizes = {self.sizes}: they must be odd.')

    def check(self, image_size):
        if max(self.sizes) // 2 >= min(image_size):
            raise UserError(
                f'{FIELD}.sizes: a kernel of {max(self.sizes)} is too wide for images of '
                f'{image_size[0]}x{image_size[1]} pixels; leave out the largest.'
            )

    def __call__(self, keys, images):
        reach = max(self.sizes) // 2
        offsets = jnp.arange(-reach, reach + 1)

        def kernel(key):
            for_sigma, for_size = jax.random.split(key)
            low, high = self.sigma
            sigma = jax.random.uniform(for_sigma, minval=low, maxval=high)
            size = jax.random.choice(for_size, jnp.asarray(self.sizes))
            weights = jnp.exp(-0.5 * (offsets / sigma) ** 2) * (jnp.abs(offsets) <= size // 2)
            return weights / weights.sum()

        kernels = jax.vmap(kernel)(keys)
        # A Gaussian on a square is one along each axis.
        return Corrupted(smooth(images, kernels))


@dataclasses.dataclass(frozen=True)
class Noise(Corruption):
    """Gaussian noise of a deviation that is drawn for every image, in grey levels of 255, added and
    not cut off.

    sigma: the deviation ~ U(sigma).
    gamma: (shape, scale): the deviation ~ Gamma, of mean shape * scale, instead; None: it does not.
    grey_share: probability that all channels get the same noise.

    Source: the denoising task of MFM's released code, with the noise that its ViT recipe uses; the
    Poisson noise of that code is left out. `gamma`: NIM (You et al., NeurIPS 2023).
    """

    sigma: tuple[NotNegative, ...] = (75.0, 75.0)
    gamma: tuple[Positive, ...] | None = None
    grey_share: Share = 0.0

    def __post_init__(self):
        check_ordered(self, 'sigma')
        if self.gamma is not None and len(self.gamma) != 2:
            raise ValueError(f'gamma = {self.gamma}: it must be (shape, scale), or None.')

    def __call__(self, keys, images):
        def noise(key, shape):
            for_sigma, for_grey, for_noise = jax.random.split(key, 3)
            low, high = self.sigma
            if self.gamma is None:
                sigma = jax.random.uniform(for_sigma, minval=low, maxval=high)
            else:
                sigma = jax.random.gamma(for_sigma, self.gamma[0]) * self.gamma[1]
            values = sigma / 255 * jax.random.normal(for_noise, shape)
            grey = jax.random.bernoulli(for_grey, self.grey_share)
            return jnp.where(grey, values[..., :1], values)

        return Corrupted(images + jax.vmap(lambda key: noise(key, images.shape[1:]))(keys))


CORRUPTIONS = {
    'frequencies': FrequencyFilter,
    'low_resolution': LowResolution,
    'blur': Blur,
    'noise': Noise,
}
