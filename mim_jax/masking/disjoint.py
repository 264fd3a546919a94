"""Random masks of two views that show no place twice, as in LUT."""

import functools
from dataclasses import dataclass

import jax

from mim_jax.errors import UserError
from mim_jax.masking.random import RandomMasking
from mim_jax.masking.selection import lowest


@dataclass(frozen=True)
class DisjointMasking(RandomMasking):
    """One random permutation of the patches per image, shared by its two views: the first view
    keeps the first int(N * (1 - ratio)) patches visible, the second the next as many.

    Either mask alone is that of `RandomMasking`.

    ratio: share of patches hidden in each view; at least a half.

    Source: LUT (Kim et al., ECCV 2024), `random_masking` of the released code.
    """

    def count(self, grid):
        """Patches hidden in every image of a grid (h, w), in either view."""
        hidden, num_patches = super().count(grid), grid[0] * grid[1]
        visible = num_patches - hidden
        if 2 * visible > num_patches:
            raise UserError(
                f'config.objective.masking.ratio = {self.ratio}: two views cannot each show '
                f'{visible} of {num_patches} patches and none in common; raise it to 0.5 or more.'
            )
        return hidden

    def __call__(self, keys, *, grid):
        """The first view's mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        return self.pair(keys, grid=grid)[0]

    def pair(self, keys, *, grid):
        """The masks of both views, each [B, N] bool, True = hidden, from keys [B]."""
        num_patches = grid[0] * grid[1]
        return _pair(keys, num_patches=num_patches, num_visible=num_patches - self.count(grid))


@functools.partial(jax.jit, static_argnames=('num_patches', 'num_visible'))
def _pair(keys, *, num_patches, num_visible):
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    first = lowest(noise, count=num_visible)
    either = lowest(noise, count=2 * num_visible)
    return ~first, first | ~either
