"""Masking that keeps what a network finds important."""

from dataclasses import dataclass

from mim_jax.masking.random import RandomMasking
from mim_jax.masking.selection import drawn_by_weight
from mim_jax.ranges import OpenShare


@dataclass(frozen=True)
class WeightedMasking(RandomMasking):
    """Keeps patches drawn one after the other, without replacement, each in proportion to its
    weight.

    The method that uses it gives the weights, a teacher's attention for example. So it is no entry
    of MASKINGS, whose masks follow from keys and grid alone.

    ratio, floor: as in `RandomMasking`.

    Source: MaskAlign (Xue et al., CVPR 2023), `attention_masking`; also MILAN.
    """

    ratio: OpenShare = 0.7

    def __call__(self, keys, *, grid, weights):
        """mask [B, N] bool, True = hidden, from one PRNG key per image [B] and weights [B, N], not
        negative.
        """
        num_visible = grid[0] * grid[1] - self.count(grid)
        return ~drawn_by_weight(keys, weights, count=num_visible)
