"""Maps [B,H,W,C] brought to another size: bilinear interpolation, adaptive pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x, size):
    """[B,H,W,C] at `size` (height, width), between the nearest pixels' centres, float32 inside.

    What PyTorch's `interpolate(mode='bilinear', align_corners=False)` gives: pixels are squares,
    beyond the outermost centres their values go on, and a smaller result is not antialiased.
    """
    if x.shape[1:3] == tuple(size):
        return x
    shape = x.shape[0], *size, x.shape[-1]
    return jax.image.resize(
        x.astype(jnp.float32), shape, 'linear', antialias=False, precision=jax.lax.Precision.HIGHEST
    ).astype(x.dtype)


def adaptive_average(x, size):
    """Means float32 [B,*size,C] over the bins of PyTorch's `AdaptiveAvgPool2d(size)`, which is also
    its `interpolate(mode='area')`.

    Bin i of n pixels is floor(i n / side) to ceil((i + 1) n / side): neighbours may overlap, and a
    map smaller than `size` is repeated.
    """
    rows, columns = (
        jnp.asarray(_bins(count, side)) for count, side in zip(x.shape[1:3], size, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, x.astype(jnp.float32), precision=highest)


def _bins(count, side):
    """float32 [side,count]: which share each pixel has in the mean of each bin."""
    places = np.arange(count)
    starts = np.arange(side) * count // side
    ends = -(-(np.arange(side) + 1) * count // side)
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def halved_by_maximum(x):
    """[B,H,W,C] to [B,H/2,W/2,C], the largest of every 2x2 pixels; an odd last line is left out."""
    # The gradient goes to one pixel of the four; that of `max` is divided by the number of largest
    # ones, which is 0 where a compiler computes the map twice, not to the same last bit.
    return nn.max_pool(x, (2, 2), strides=(2, 2))
