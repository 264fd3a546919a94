"""Colours on the device: jitter, grey, solarisation, blur, drawn per example.

Images are float32 [B,H,W,C] in [0, 1], C 3 or 1, and stay in that range. Keys [B] are one per
example, and each draw has a name of its own.
"""

import math

import jax
import jax.numpy as jnp

from mim_jax.keys import named

# Weights of red, green and blue in a grey value (ITU-R 601, as Pillow and torchvision).
GREY = (0.299, 0.587, 0.114)
# A blur's kernel ends at that many standard deviations.
BLUR_REACH = 3.0


def jitter(images, colors, draws, keys):
    """Brightness, contrast, saturation, hue, in this order.

    torchvision shuffles the order per image; the factors and each operation are the same, each
    clipped to [0, 1]. Grey images ignore saturation and hue.

    Args:
      colors: a `Colors`.
      draws: uniform float32 [B,3], for the first three factors.
      keys: for what is drawn beyond them.
    """
    before = images
    strengths = colors.brightness, colors.contrast, colors.saturation
    low = jnp.maximum(0.0, 1.0 - jnp.asarray(strengths))
    factors = low + draws * (1.0 + jnp.asarray(strengths) - low)
    brightness, contrast, saturation = (_per_image(f) for f in factors.T)
    if colors.brightness > 0:
        images = jnp.clip(brightness * images, 0.0, 1.0)
    if colors.contrast > 0:
        mean = grey(images).mean(axis=(1, 2, 3), keepdims=True)
        images = jnp.clip(mean + contrast * (images - mean), 0.0, 1.0)
    if colors.saturation > 0 and images.shape[-1] == 3:
        middle = grey(images)
        images = jnp.clip(middle + saturation * (images - middle), 0.0, 1.0)
    if colors.hue > 0 and images.shape[-1] == 3:
        turn = colors.hue * (2.0 * _uniform(keys, 'hue') - 1.0)
        images = turn_hue(images, turn)
    if colors.probability < 1:
        happens = _uniform(keys, 'jitter') < colors.probability
        images = jnp.where(_per_image(happens), images, before)
    return images


def recolor(images, colors, keys):
    """Grey, blur, solarisation, in this order (BYOL's): each by its own coin, or one of them."""
    names = ('grey', 'blur', 'solarize')
    weights = [getattr(colors, name) for name in names]
    if not any(weights):
        return images
    if colors.one_of:
        # Rounding could place a draw at the very end, where the last may have no weight.
        last = max(i for i, weight in enumerate(weights) if weight > 0)
        place = _uniform(keys, 'one_of') * sum(weights)
        ends = weights[0], weights[0] + weights[1]
        chosen = jnp.minimum(sum((place >= end).astype(int) for end in ends), last)
        happens = [chosen == i for i in range(len(names))]
    else:
        happens = [_uniform(keys, name) < getattr(colors, name) for name in names]
    reach = math.ceil(BLUR_REACH * colors.blur_sigma[1])
    changed = {
        'grey': lambda x: jnp.broadcast_to(grey(x), x.shape),
        'blur': lambda x: blur(x, _between(colors.blur_sigma, keys), reach=reach),
        'solarize': lambda x: jnp.where(x < 0.5, x, 1.0 - x),
    }
    for name, weight, happen in zip(names, weights, happens, strict=True):
        if weight > 0:
            images = jnp.where(_per_image(happen), changed[name](images), images)
    return images


def grey(images):
    """float [...,C] to grey values [...,1]; a grey image is returned as it is."""
    if images.shape[-1] == 1:
        return images
    # Multiply and add, not a matrix product: that one would round to bfloat16 on a TPU.
    return jnp.sum(images * jnp.asarray(GREY, images.dtype), axis=-1, keepdims=True)


def turn_hue(images, turn):
    """Colours [B,H,W,3] turned on the circle of hues by `turn` [B], 1 being all the way round.

    Value and saturation in the sense of HSV stay, as in torchvision's `adjust_hue`.
    """
    red, green, blue = (images[..., i] for i in range(3))
    value, least = images.max(axis=-1), images.min(axis=-1)
    chroma = value - least
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    # Channels are compared with one another, where either is right for two that are near. Compared
    # with `value` none might be it: a compiler may work colours out twice, rounded otherwise.
    sector = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    sector = sector + 6.0 * turn[:, None, None]
    # A channel is at the value on a third of the circle, at the least on another, and falls
    # linearly between; red, green and blue are 120 degrees apart.
    channels = []
    for offset in (5.0, 3.0, 1.0):
        distance = jnp.mod(offset + sector, 6.0)
        share = jnp.clip(jnp.minimum(distance, 4.0 - distance), 0.0, 1.0)
        channels.append(value - chroma * share)
    return jnp.stack(channels, axis=-1)


def blur(images, sigma, *, reach):
    """Gaussian blur, the edges reflected without repeating them, as torchvision's.

    Args:
      sigma: float [B] in pixels.
      reach: the kernel has 2 reach + 1 taps per axis.
    """
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    return smooth(images, weights / weights.sum(axis=1, keepdims=True))


def smooth(images, weights):
    """Sums over neighbours along both axes, by weights [B,2r+1] of each image's own; the edges are
    reflected without repeating them.
    """
    reach = weights.shape[1] // 2
    for axis in (1, 2):
        count = images.shape[axis]
        widths = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(images, widths, mode='reflect')
        # Shifted sums, which compile to one loop; a kernel per image makes a slow convolution.
        images = sum(
            _per_image(weights[:, i]) * jax.lax.slice_in_dim(padded, i, i + count, axis=axis)
            for i in range(2 * reach + 1)
        )
    return images


def _uniform(keys, name):
    return jax.vmap(jax.random.uniform)(named(keys, name))


def _between(bounds, keys):
    low, high = bounds
    return low + (high - low) * _uniform(keys, 'blur_sigma')


def _per_image(values):
    return values[:, None, None, None]
