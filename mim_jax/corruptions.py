"""How images are corrupted before a network restores them.

Each class in CORRUPTIONS is a config section and a function of per-image keys and images in [0, 1].
"""

import dataclasses
import functools
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

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

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        """Raises UserError where images of that size (height, width) and channels do not suit."""

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

    def check(self, image_size, channels):
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

    def check(self, image_size, channels):
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

    def check(self, image_size, channels):
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


@dataclasses.dataclass(frozen=True)
class Distortion(Corruption):
    """A fisheye about a point drawn from the image: a pixel at distance d from it shows what lies
    at (1 - magnitude d) d in the same direction. Between pixels values are interpolated.

    magnitude: ~ U(magnitude), where the sides of an image are 2 long. With 0.35 at most every place
      that is shown lies in the image.

    Source: the task `distorted` of Beyond Masking's released code.
    """

    magnitude: tuple[Annotated[float, Range(0, 0.35)], ...] = (0.15, 0.25)

    def __post_init__(self):
        check_ordered(self, 'magnitude')

    def __call__(self, keys, images):
        sides = images.shape[1:3]
        places = jnp.stack(jnp.meshgrid(*(jnp.linspace(-1, 1, n) for n in sides), indexing='ij'))

        def distorted(key, image):
            for_centre, for_magnitude = jax.random.split(key)
            centre = jax.random.uniform(for_centre, (2, 1, 1), minval=-1.0)
            low, high = self.magnitude
            magnitude = jax.random.uniform(for_magnitude, minval=low, maxval=high)
            away = places - centre
            away *= 1 - magnitude * jnp.sqrt(jnp.sum(away**2, axis=0))
            pixels = [(x + 1) / 2 * (n - 1) for x, n in zip(centre + away, sides, strict=True)]
            look = functools.partial(map_coordinates, order=1, mode='nearest')
            return jax.vmap(look, in_axes=(-1, None), out_axes=-1)(image, pixels)

        return Corrupted(jax.vmap(distorted)(keys, images))


@dataclasses.dataclass(frozen=True)
class RandomKernel(Corruption):
    """A convolution with weights drawn for every image, from all channels to each, which blurs a
    little, takes most of the colour and stretches the contrast; not cut off.

    size: of the square kernel; weights ~ N(1 / size^2, deviation). What is convolved are the
    differences from mid-grey, and beyond the image all is of it.

    Source: the task `blurred` of Beyond Masking's released code, whose call asks for a kernel of 1
      with 7 outputs, which its network cannot take; with padding 3 and weights of mean 1 / 49 a
      kernel of 7 with 3 outputs is meant, and its figures show as much.
    """

    size: Annotated[int, Range(1, 31)] = 7
    deviation: NotNegative = 0.02

    def __post_init__(self):
        if self.size % 2 == 0:
            raise ValueError(f'size = {self.size}: it must be odd.')

    def __call__(self, keys, images):
        channels, reach = images.shape[-1], self.size // 2
        shape = self.size**2, channels, channels
        drawn = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        kernels = 1 / self.size**2 + self.deviation * drawn
        widths = ((0, 0), (reach, reach), (reach, reach), (0, 0))
        padded = jnp.pad(images - 0.5, widths)

        def add(place, total):
            # Shifted sums: a kernel per image makes a slow convolution (see `colors.smooth`).
            row, column = divmod(place, self.size)
            shifted = jax.lax.dynamic_slice(padded, (0, row, column, 0), images.shape)
            weights = kernels[:, place, None, None]
            return total + (shifted[..., None] * weights).sum(axis=-2)

        return Corrupted(0.5 + jax.lax.fori_loop(0, self.size**2, add, jnp.zeros_like(images)))


@dataclasses.dataclass(frozen=True)
class Decoloring(Corruption):
    """One grey picture in all channels: a sum of the colours with weights ~ U(weights), drawn for
    every image and colour; not cut off.

    Source: the task `decolorized` of Beyond Masking's released code, whose weights are the batch's
      and whose network has one channel.
    """

    weights: tuple[NotNegative, ...] = (0.0, 0.667)

    def __post_init__(self):
        check_ordered(self, 'weights')

    def check(self, image_size, channels):
        if channels == 1:
            raise UserError(
                f'{FIELD}.name = decoloring, but the images of config.data.channels = 1 have no '
                'colour to lose; choose another one.'
            )

    def __call__(self, keys, images):
        low, high = self.weights
        draw = functools.partial(jax.random.uniform, minval=low, maxval=high)
        weights = jax.vmap(lambda key: draw(key, images.shape[-1:]))(keys)
        grey = jnp.sum(images * weights[:, None, None], axis=-1, keepdims=True)
        return Corrupted(jnp.broadcast_to(grey, images.shape))


CORRUPTIONS = {
    'frequencies': FrequencyFilter,
    'low_resolution': LowResolution,
    'blur': Blur,
    'noise': Noise,
    'distortion': Distortion,
    'random_kernel': RandomKernel,
    'decoloring': Decoloring,
}
