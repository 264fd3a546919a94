"""Which patches are hidden.

Each class in MASKINGS is a config section and a function of per-image keys and the grid; the number
of hidden patches is the same for every image and known before any draw (`count`).
"""

from mim_jax.masking.block import BlockMasking
from mim_jax.masking.colored import ColoredMasking
from mim_jax.masking.complementary import ComplementaryMasking
from mim_jax.masking.covering import CoveringMasking
from mim_jax.masking.curriculum import rising_count
from mim_jax.masking.disjoint import DisjointMasking
from mim_jax.masking.grid import GridMasking
from mim_jax.masking.multiblock import Blocks, MultiBlockMasking
from mim_jax.masking.none import NoMasking
from mim_jax.masking.random import RandomMasking
from mim_jax.masking.selection import (
    drawn_by_weight,
    hardest_first,
    hidden_ids,
    in_places,
    mask_without,
    visible_ids,
)
from mim_jax.masking.shortlong import BlockUnion, ShortLongMasking
from mim_jax.masking.weighted import WeightedMasking

__all__ = [
    'MASKINGS',
    'BlockMasking',
    'BlockUnion',
    'Blocks',
    'ColoredMasking',
    'ComplementaryMasking',
    'CoveringMasking',
    'DisjointMasking',
    'GridMasking',
    'MultiBlockMasking',
    'NoMasking',
    'RandomMasking',
    'ShortLongMasking',
    'WeightedMasking',
    'drawn_by_weight',
    'hardest_first',
    'hidden_ids',
    'in_places',
    'mask_without',
    'rising_count',
    'visible_ids',
]

MASKINGS = {
    'random': RandomMasking,
    'grid': GridMasking,
    'block': BlockMasking,
    'colored': ColoredMasking,
}
