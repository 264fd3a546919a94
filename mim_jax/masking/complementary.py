"""Two rounds of masks of one view that show different patches and ask for the same, as in MOCA."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.ranges import OpenShare


@dataclass(frozen=True)
class ComplementaryMasking:
    """One random permutation of the patches per image: the encoder sees the first of them in the
    first round, the next ones in neither, and of the rest the first in the second round.

    first, second: shares of the patches that the encoder sees in either round.
    asked: share of the patches that are seen in neither and predicted in both.

    Source: MOCA (Gidaris et al., TMLR 2024), `make_two_complementary_masks` of the released code.
    """

    first: OpenShare = 0.45
    second: OpenShare = 0.25
    asked: OpenShare = 0.2

    def counts(self, grid):
        """Patches (first, second, asked) of a grid (h, w)."""
        num_patches = grid[0] * grid[1]
        # The least that is added keeps whole numbers from being rounded down: int(196 * 0.25).
        shares = self.first, self.second, self.asked
        counts = tuple(int(num_patches * share + 1e-9) for share in shares)
        if sum(counts) > num_patches or not min(counts):
            raise UserError(
                f'config.objective.masking: first, second and asked = {shares} are '
                f'{counts[0]}, {counts[1]} and {counts[2]} of {num_patches} patches, which must be '
                'different ones and at least one of each; change the shares.'
            )
        return counts

    def rounds(self, keys, *, grid):
        """For each of the two rounds the places of the patches seen, int32 [B, first] and then
        [B, second], and of those asked for, [B, asked] and the same in both, from keys [B].
        """
        num_patches, counts = grid[0] * grid[1], self.counts(grid)
        first, second, asked = _draw(keys, num_patches=num_patches, counts=counts)
        return [(first, asked), (second, asked)]


@functools.partial(jax.jit, static_argnames=('num_patches', 'counts'))
def _draw(keys, *, num_patches, counts):
    first, second, asked = counts
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    order = jnp.argsort(noise, axis=-1).astype(jnp.int32)
    begin = first + asked
    return order[:, :first], order[:, begin : begin + second], order[:, first:begin]
