"""Masks from filtered noise, as in ColorMAE."""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.masking.random import RandomMasking
from mim_jax.masking.selection import lowest
from mim_jax.ranges import Range

# Of each colour the shares of the noise itself, its narrow blur and its wide one.
COLORS = {
    'red': (0, 0, 1),  # low frequencies
    'blue': (1, 0, -1),  # high ones
    'green': (0, 1, -1),  # those between
    'purple': (1, -1, 1),  # those that green lacks
    'white': (1, 0, 0),  # all alike: random masking
}
TRUNCATE = 4  # deviations at which a Gaussian ends
# Patches; the noise is drawn so much larger than the grid.
Sigma = Annotated[float, Range(0, 100, low_open=True)]


@dataclass(frozen=True)
class ColoredMasking(RandomMasking):
    """Keeps visible the patches at which filtered noise is largest.

    With white noise W, a number for each patch, and Gaussian blurs n (narrow) and w (wide): red is
    w(W), blue W - w(W), green n(W) - w(W), purple W - green.

    ratio, floor: how many patches are hidden, as in `RandomMasking`.
    color: one of COLORS.
    narrow, wide: deviations of the blurs in patches.

    Source: ColorMAE (Hinojosa et al., ECCV 2024), whose code loads noise that it does not make: the
    deviations are not in it.
    """

    color: Literal[tuple(COLORS)] = 'green'
    narrow: Sigma = 0.5
    wide: Sigma = 2.0

    def __post_init__(self):
        if self.narrow >= self.wide:
            raise ValueError(f'narrow = {self.narrow} must be below wide = {self.wide}.')

    def noise(self, keys, *, grid, shares=None):
        """Filtered noise [B, N] float32 from one PRNG key per image [B].

        shares: [3], may be traced; those of another colour than `color`, as in COLORS.
        """
        shares = jnp.asarray(COLORS[self.color] if shares is None else shares, jnp.float32)
        return _noise(keys, shares, sigmas=(self.narrow, self.wide), grid=tuple(grid))

    def hide(self, noise, *, grid):
        """mask [B, N] bool, True = hidden, by noise [B, N]."""
        return lowest(noise, count=self.count(grid))

    def __call__(self, keys, *, grid):
        """mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        return self.hide(self.noise(keys, grid=grid), grid=grid)


@functools.partial(jax.jit, static_argnames=('sigmas', 'grid'))
def _noise(keys, shares, *, sigmas, grid):
    margin = max(map(reach, sigmas))
    shape = tuple(size + 2 * margin for size in grid)
    white = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    # Beside the grid there is noise as well: no filter sees an edge, as in a cut-out of large maps.
    inside = white[:, margin : margin + grid[0], margin : margin + grid[1]]
    found = shares[0] * inside
    for share, sigma in zip(shares[1:], sigmas, strict=True):
        down, across = (gaussian(size, sigma=sigma, margin=margin) for size in grid)
        exact = jax.lax.Precision.HIGHEST
        found += share * jnp.einsum('hy,byx,wx->bhw', down, white, across, precision=exact)
    return found.reshape(found.shape[0], -1)


def reach(sigma):
    """Patches on either side of one that its blur by a Gaussian of deviation `sigma` takes in."""
    return int(TRUNCATE * sigma + 0.5)


def gaussian(size, *, sigma, margin):
    """Blurs one axis: matrix [size, size + 2 margin], float32, whose rows sum to 1."""
    offsets = np.arange(size + 2 * margin) - margin - np.arange(size)[:, None]
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) * (np.abs(offsets) <= reach(sigma))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
