"""Device side of the data: flips, colour jitter and normalisation, inside the jitted step.

Every example has its own key, so that the same example gets the same draws in whatever
microbatch or shard it is computed.
"""

import jax
import jax.numpy as jnp

# Weights of red, green and blue in a grey value (ITU-R 601, as Pillow and torchvision).
GREY = (0.299, 0.587, 0.114)


def augment(keys, images, *, flip=0.0, color_jitter=(0.0, 0.0, 0.0), masks=None, view=0):
    """Colour jitter and horizontal flips.

    Brightness, contrast and saturation are applied in this order (torchvision shuffles the order
    per image; the factors and each operation are the same), each clipped to [0, 1]. A factor is
    drawn from U[max(0, 1 - x), 1 + x]. Grey images ignore saturation.

    Args:
      keys: typed PRNG keys [B], one per example.
      images: uint8 [B,H,W,C], C 3 or 1.
      flip: probability of a flip.
      color_jitter: (brightness, contrast, saturation); 0 leaves a property as it is.
      masks: [B,H,W] of any type, flipped with their images; None: none.
      view: views of one key have the same flip, and a jitter of their own.

    Returns:
      float32 [B,H,W,C] in [0, 1]; with `masks`, the pair (images, masks).
    """
    images = images.astype(jnp.float32) / 255.0

    def uniform(view):
        return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, view), (4,)))(keys)

    draws = uniform(view)
    low = jnp.maximum(0.0, 1.0 - jnp.asarray(color_jitter))
    factors = low + draws[:, :3] * (1.0 + jnp.asarray(color_jitter) - low)
    brightness, contrast, saturation = (f[:, None, None, None] for f in factors.T)
    if color_jitter[0] > 0:
        images = jnp.clip(brightness * images, 0.0, 1.0)
    if color_jitter[1] > 0:
        mean = grey(images).mean(axis=(1, 2, 3), keepdims=True)
        images = jnp.clip(mean + contrast * (images - mean), 0.0, 1.0)
    if color_jitter[2] > 0 and images.shape[-1] == 3:
        middle = grey(images)
        images = jnp.clip(middle + saturation * (images - middle), 0.0, 1.0)
    flipped = uniform(0)[:, 3] < flip
    if flip > 0:
        images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    if masks is None:
        return images
    if flip > 0:
        masks = jnp.where(flipped[:, None, None], masks[:, :, ::-1], masks)
    return images, masks


def grey(images):
    """float [...,C] to grey values [...,1]; a grey image is returned as it is."""
    if images.shape[-1] == 1:
        return images
    # Multiply and add, not a matrix product: that one would round to bfloat16 on a TPU.
    return jnp.sum(images * jnp.asarray(GREY, images.dtype), axis=-1, keepdims=True)


def normalize(images, *, mean, std):
    """(images - mean) / std per channel; float32 [...,C] in and out."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images - mean) / std


def denormalize(images, *, mean, std):
    """The inverse of `normalize`; not clipped to [0, 1]."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return images * std + mean
