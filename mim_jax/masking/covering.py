"""Masks of two views of an image that together hide all of it, or a share of it, as in DMJD."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mim_jax.masking.grid import GridMasking
from mim_jax.ranges import PositiveShare


@dataclass(frozen=True)
class CoveringMasking(GridMasking):
    """Two masks of coarse cells, either alone that of `GridMasking`. The second hides
    int(min(covered - ratio, ratio) * cells) of the cells that the first leaves visible, drawn at
    random, and for the rest cells that the first hides too.

    ratio, cell: as in `GridMasking`; cells of (1, 1) are single patches.
    covered: share of the cells that at least one of the masks hides, as far as two of them can; 1:
      what one leaves visible the other hides, as long as that is no more than it hides.

    Source: DMJD (Ma et al., arXiv 2301.00230), `block_masking` and `random_masking` of the released
    code, whose draws of the second mask are shared by the batch; the paper's prediction rate.
    """

    covered: PositiveShare = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.covered < self.ratio:
            raise ValueError(
                f'covered = {self.covered} is below ratio = {self.ratio}, the share that the first '
                'mask hides already; raise it.'
            )

    def __call__(self, keys, *, grid):
        """The first view's mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        return self.pair(keys, grid=grid)[0]

    def pair(self, keys, *, grid):
        """The masks of both views, each [B, N] bool, True = hidden, from keys [B]."""
        (rows, columns), hidden = self._cells(grid)
        cells = rows * columns
        noise = jax.vmap(lambda key: jax.random.uniform(key, (cells,)))(keys)
        # The place of every cell in a permutation of the image's own: the first mask leaves the
        # first ones visible. Which of these the second hides is then by chance as well.
        rank = jnp.argsort(jnp.argsort(noise, axis=-1), axis=-1)
        visible = cells - hidden
        extra = min(int(min(self.covered - self.ratio, self.ratio) * cells), visible)
        first = rank >= visible
        second = (rank < extra) | (first & (rank < cells - extra))
        return self._patches(first, grid), self._patches(second, grid)
