"""Random erasing (Zhong et al., AAAI 2020), on the device: a box of each image becomes noise."""

import math

import jax
import jax.numpy as jnp

from mim_jax.keys import named

ATTEMPTS = 10
AREA = (0.02, 1 / 3)
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


def erase(keys, images, *, probability, mean, std):
    """Puts noise into a box of every image, or of none, as timm does in mode `pixel`.

    A box has a share of the image's area from AREA, drawn uniformly, and height / width from
    exp(LOG_ASPECT), drawn uniformly on the log scale; of ATTEMPTS such boxes the first that is
    smaller than the image on both sides is taken, at a place drawn uniformly. Where none is, the
    image stays. Every value of every pixel in it is a standard normal of the normalised image, on
    the scale of `images` mean + std * normal, which is not cut to [0, 1].

    Args:
      keys: typed PRNG keys [B], one per example.
      images: float [B,H,W,C] in [0, 1].
      probability: with which an image has a box.
      mean, std: of the normalisation that follows, one number per channel.

    Returns:
      Images of the same shape and dtype.
    """
    if not probability:
        return images
    happens = _uniform(keys, 'erase') < probability
    inside = happens[:, None, None] & boxes(keys, size=images.shape[1:3])
    shape = images.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(named(keys, 'erase noise'))
    noise = jnp.asarray(mean, jnp.float32) + jnp.asarray(std, jnp.float32) * noise
    return jnp.where(inside[..., None], noise.astype(images.dtype), images)


def boxes(keys, *, size):
    """True inside of a box drawn for each key, bool [B,H,W]; nowhere where none fits."""
    height, width = size
    shares = _uniform(keys, 'erase area', ATTEMPTS, AREA)
    aspects = jnp.exp(_uniform(keys, 'erase aspect', ATTEMPTS, LOG_ASPECT))
    heights = jnp.round(jnp.sqrt(shares * height * width * aspects))
    widths = jnp.round(jnp.sqrt(shares * height * width / aspects))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    inside = fits.any(axis=1)[:, None, None]
    for axis, (side, extents) in enumerate(zip(size, (heights, widths), strict=True)):
        extent = jnp.take_along_axis(extents, first, axis=1)[:, 0]
        # Of the side - extent + 1 places each is equally likely; rounding may give one too many.
        places = side - extent
        start = jnp.minimum(jnp.floor(_uniform(keys, f'erase place{axis}') * (places + 1)), places)
        offset = jnp.arange(side) - start[:, None]
        covered = (offset >= 0) & (offset < extent[:, None])
        inside = inside & jnp.expand_dims(covered, 2 - axis)
    return inside


def _uniform(keys, name, count=None, bounds=(0.0, 1.0)):
    """[B], or [B,count], uniform between bounds."""
    shape = () if count is None else (count,)
    low, high = bounds
    return jax.vmap(lambda key: jax.random.uniform(key, shape, minval=low, maxval=high))(
        named(keys, name)
    )
