"""Mixing images and their targets in pairs, on the device: mixup and CutMix."""

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.keys import named


def mix(keys, images, targets, *, mixup=0.0, cutmix=0.0, switch=0.5, shared=None):
    """Mixes every image, and its target, with its partner's.

    mixup (Zhang et al., 2018) blends all pixels; CutMix (Yun et al., 2019) puts a box of the
    partner into the image. As timm's in mode 'elem': every image draws its own share from a Beta
    distribution, and which of the two happens. With `shared` as in its mode 'batch': share, box and
    which of the two are drawn once. The box's sides are cut at the image's edges and the share is
    corrected to what is left of it.

    The partner is half the batch away. With accumulation, row i of the batch is in microbatch
    i mod A, so that partners stay together and are the same in any number of microbatches, as long
    as each has an even number of rows.

    Args:
      keys: typed PRNG keys [B], one per example.
      images: float [B,H,W,C].
      targets: float [B,K], probabilities of the classes.
      mixup, cutmix: the Beta distribution's parameter; 0: not this one.
      switch: probability of CutMix where both are given.
      shared: a typed PRNG key for all draws of the whole batch, in place of `keys`.

    Returns:
      Images and targets of the same shapes.

    Raises:
      UserError: B is odd.
    """
    if not mixup and not cutmix:
        return images, targets
    if len(images) % 2:
        raise UserError(
            f'mixing pairs the images of a batch, or of a microbatch: {len(images)} is odd; change '
            f'config.data.batch_size or config.train.accumulation.'
        )
    if shared is not None:
        keys = jnp.broadcast_to(shared, keys.shape)
    happens = _uniform(keys, 'switch') < (switch if mixup and cutmix else float(bool(cutmix)))
    shares = jnp.where(happens, _beta(keys, 'cutmix', cutmix), _beta(keys, 'mixup', mixup))
    outside, boxed_shares = _outside_of_box(keys, shares, size=images.shape[1:3])
    kept = jnp.where(happens[:, None, None], outside, shares[:, None, None])[..., None]
    shares = jnp.where(happens, boxed_shares, shares)[:, None]
    mixed_images = kept * images + (1.0 - kept) * partner(images)
    mixed_targets = shares * targets + (1.0 - shares) * partner(targets)
    return mixed_images.astype(images.dtype), mixed_targets.astype(targets.dtype)


def partner(rows):
    """The partner's row in place of each row [B,…]: the one half the batch away."""
    return jnp.roll(rows, len(rows) // 2, axis=0)


def _outside_of_box(keys, shares, *, size):
    """1.0 outside of a box that leaves about `shares` [B] of the image, 0.0 inside [B,H,W]; and
    the share that it leaves."""
    inside = True
    for axis, side in enumerate(size):
        extent = jnp.floor(side * jnp.sqrt(1.0 - shares))
        centre = jnp.floor(side * _uniform(keys, f'centre{axis}'))
        start = jnp.maximum(centre - jnp.floor(extent / 2), 0)[:, None]
        end = jnp.minimum(centre + jnp.floor(extent / 2), side)[:, None]
        place = jnp.arange(side)
        covered = (place >= start) & (place < end)
        inside = inside & jnp.expand_dims(covered, 2 - axis)
    outside = 1.0 - inside.astype(jnp.float32)
    return outside, outside.mean(axis=(1, 2))


def _uniform(keys, name):
    return jax.vmap(jax.random.uniform)(named(keys, name))


def _beta(keys, name, parameter):
    if not parameter:
        return jnp.ones(len(keys))
    draw = jax.vmap(lambda key: jax.random.beta(key, parameter, parameter))
    return draw(named(keys, name))
