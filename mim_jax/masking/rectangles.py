"""Rectangular blocks of patches: sizes that a step draws, places that an image draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

DRAWS = 4096  # sizes are drawn from a table of so many equally likely ones


@functools.cache
def block_sizes(grid, *, scale, aspect, largest):
    """Sizes (height, width) that blocks of a grid (h, w) may have, int [DRAWS, 2].

    One number u in [0, 1) decides area and aspect together: of N patches int(N (s0 + u (s1 - s0)))
    are covered, height / width is a0 + u (a1 - a0), both sides are rounded and are at most those of
    `largest`. Row i has u = (i + 0.5) / DRAWS.

    Source: I-JEPA (Assran et al., CVPR 2023), the block sizes of the released code.
    """
    sizes = []
    for u in (np.arange(DRAWS) + 0.5) / DRAWS:
        area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect[0] + u * (aspect[1] - aspect[0])
        size = math.sqrt(area * ratio), math.sqrt(area / ratio)
        sizes.append([round(min(side, most)) for side, most in zip(size, largest, strict=True)])
    return np.array(sizes)


def drawn_size(key, sizes):
    """One row of `sizes` [DRAWS, 2], int32 scalars (height, width)."""
    return tuple(jnp.asarray(sizes, jnp.int32)[jax.random.randint(key, (), 0, len(sizes))])


def drawn_corners(key, shape, *, size, grid, margin):
    """Corners (top, left) int32 of the given shape, of blocks of `size` that leave at least
    `margin` rows and columns free at the lower and right edge of the grid.
    """
    keys = jax.random.split(key)
    return tuple(
        jax.random.randint(k, shape, 0, whole - side - margin + 1)
        for k, side, whole in zip(keys, size, grid, strict=True)
    )


def inside(corners, *, size, grid):
    """Patches of the blocks at `corners` (top, left) [...], bool [..., N]."""
    rows, columns = (
        (corner[..., None] <= places) & (places < corner[..., None] + side)
        for corner, side, places in zip(corners, size, map(jnp.arange, grid), strict=True)
    )
    found = rows[..., :, None] & columns[..., None, :]
    return found.reshape(*found.shape[:-2], grid[0] * grid[1])


def places(corners, *, size, grid, count):
    """Places int32 [..., count] of the patches of the blocks at `corners` [...], row by row; after
    the last patch of a block its first ones again.
    """
    height, width = size
    slot = jnp.arange(count) % (height * width)
    top, left = (corner[..., None] for corner in corners)
    return (top + slot // width) * grid[1] + left + slot % width
