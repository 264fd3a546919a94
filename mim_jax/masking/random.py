"""Random masking, as in MAE."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax

from mim_jax.errors import UserError
from mim_jax.masking.selection import lowest
from mim_jax.ranges import OpenShare


@dataclass(frozen=True)
class RandomMasking:
    """Hides patches drawn uniformly without replacement.

    ratio: share of patches hidden.
    floor: which of the two numbers is rounded down: int(N * (1 - ratio)) patches stay 'visible', as
      in MAE's released code, or int(N * ratio) are 'hidden', as in CroCo's.

    Source: MAE (He et al., CVPR 2022), `random_masking`.
    """

    ratio: OpenShare = 0.75
    floor: Literal['visible', 'hidden'] = 'visible'

    def count(self, grid):
        """Patches hidden in every image of a grid (h, w)."""
        num_patches = grid[0] * grid[1]
        visible = int(num_patches * (1 - self.ratio))
        if self.floor == 'hidden':
            visible = num_patches - int(num_patches * self.ratio)
        if not 0 < visible < num_patches:
            raise UserError(
                f'config.objective.masking.ratio = {self.ratio}: of {num_patches} patches '
                f'{visible} would stay visible; choose a ratio that leaves some of each kind.'
            )
        return num_patches - visible

    def __call__(self, keys, *, grid):
        """mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        return hide_at_random(keys, num_patches=grid[0] * grid[1], count=self.count(grid))


@functools.partial(jax.jit, static_argnames=('num_patches', 'count'))
def hide_at_random(keys, *, num_patches, count):
    """Mask [B, num_patches] with `count` True in every row, from keys [B]."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    return lowest(noise, count=count)
