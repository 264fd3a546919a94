"""Masking on a coarse grid, as in SimMIM."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.masking.random import hide_at_random
from mim_jax.ranges import OpenShare, Side


@dataclass(frozen=True)
class GridMasking:
    """Hides cells of several patches, drawn uniformly without replacement.

    ratio: share of cells hidden, rounded up.
    cell: (height, width) of a cell in patches; SimMIM's 32 pixels are (2, 2) patches of 16.

    Source: SimMIM (Xie et al., CVPR 2022), the mask generator of the released code.
    """

    ratio: OpenShare = 0.6
    cell: tuple[Side, ...] = (2, 2)

    def __post_init__(self):
        if len(self.cell) != 2:
            raise ValueError(f'cell = {self.cell}: it must be (height, width) in patches.')

    def count(self, grid):
        """Patches hidden in every image of a grid (h, w)."""
        return self._cells(grid)[1] * self.cell[0] * self.cell[1]

    def __call__(self, keys, *, grid):
        """mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        (rows, columns), hidden = self._cells(grid)
        mask = hide_at_random(keys, num_patches=rows * columns, count=hidden)
        return self._patches(mask, grid)

    def _patches(self, mask, grid):
        """A mask of cells [B, cells] as one of patches [B, N]."""
        mask = mask.reshape(-1, grid[0] // self.cell[0], grid[1] // self.cell[1])
        mask = jnp.repeat(jnp.repeat(mask, self.cell[0], axis=1), self.cell[1], axis=2)
        return mask.reshape(mask.shape[0], -1)

    def _cells(self, grid):
        if grid[0] % self.cell[0] or grid[1] % self.cell[1]:
            raise UserError(
                f'config.objective.masking.cell = {tuple(self.cell)}: a grid of '
                f'{grid[0]}x{grid[1]} patches does not divide into such cells; choose a cell '
                f'that does.'
            )
        rows, columns = grid[0] // self.cell[0], grid[1] // self.cell[1]
        hidden = math.ceil(rows * columns * self.ratio)
        if hidden == rows * columns:
            raise UserError(
                f'config.objective.masking.ratio = {self.ratio}: all {hidden} cells would be '
                f'hidden; lower it, or make the cells smaller.'
            )
        return (rows, columns), hidden
