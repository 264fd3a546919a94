"""Unions of blocks that are predicted and what is left over, as in V-JEPA, on images."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from mim_jax import keys as named_keys
from mim_jax.errors import UserError
from mim_jax.masking.multiblock import Blocks
from mim_jax.masking.rectangles import block_sizes, drawn_corners, drawn_size, inside
from mim_jax.masking.selection import lowest, visible_ids
from mim_jax.ranges import Count, Positive, PositiveShare, Repeats, check_ordered


@dataclass(frozen=True)
class BlockUnion:
    """What is predicted is the union of blocks, what is seen lies outside of it.

    num_blocks, scale: how many blocks, and the share of the patches that each covers.
    num_context, num_predicted: patches of every image that are seen and predicted, exactly. In the
      released code every device cuts both to the least of its batch: the defaults of
      `ShortLongMasking` are what that gives on average for 24 images of 14 x 14 patches.
    """

    num_blocks: Repeats
    scale: PositiveShare
    num_context: Count
    num_predicted: Count


@dataclass(frozen=True)
class ShortLongMasking:
    """Two masks of an image, each for a pass of its own: the unions of many small blocks ('short')
    and of few large ones ('long').

    The size of the blocks of a union is drawn once a step, as a function of the step alone, places
    once an image. Where more patches lie outside or inside than are wanted some are left out, and
    where there are fewer some of the other kind are taken. In the released code there never are
    fewer, for the counts follow the batch, and blocks that leave nothing are drawn again.

    aspect: height / width of the blocks, drawn uniformly.
    kept: patches are left out, or taken, at 'random', or the last ones are left out as in the
      released code, where the 'first' ones of a batch's least number are kept row by row.

    Source: V-JEPA (Bardes et al., TMLR 2024), multi-block masks of the released code for one frame.
    """

    short: BlockUnion = BlockUnion(num_blocks=8, scale=0.15, num_context=46, num_predicted=95)
    long: BlockUnion = BlockUnion(num_blocks=2, scale=0.7, num_context=12, num_predicted=138)
    aspect: tuple[Positive, ...] = (0.75, 1.5)
    kept: Literal['random', 'first'] = 'random'

    def __post_init__(self):
        check_ordered(self, 'aspect')

    def count(self, grid):
        """Patches of a grid (h, w) hidden from the encoder in every image by the short blocks."""
        num_patches = grid[0] * grid[1]
        for name, union in (('short', self.short), ('long', self.long)):
            wanted = union.num_context + union.num_predicted
            if wanted > num_patches:
                raise UserError(
                    f'config.objective.masking.{name}: num_context + num_predicted = {wanted}, but '
                    f'an image has {num_patches} patches; lower them.'
                )
            if self.sizes(union, grid).min() < 1:
                raise UserError(
                    f'config.objective.masking.{name}.scale = {union.scale}: a block of a grid of '
                    f'{grid[0]}x{grid[1]} patches would be empty; raise it.'
                )
        return num_patches - self.short.num_context

    def sizes(self, union, grid):
        """Sizes that the blocks of a union may have, int [DRAWS,2]."""
        scale = (union.scale, union.scale)
        return block_sizes(tuple(grid), scale=scale, aspect=self.aspect, largest=tuple(grid))

    def __call__(self, keys, *, grid, step):
        """{'short': Blocks, 'long': Blocks} on a grid (h, w) from one PRNG key per image [B] at
        `step`, an integer that may be traced; what is predicted is one block of each image.
        """
        self.count(grid)
        return {
            name: _draw(
                named_keys.named(keys, name),
                jnp.asarray(step),
                rule=self,
                name=name,
                grid=tuple(grid),
            )
            for name in ('short', 'long')
        }


@functools.partial(jax.jit, static_argnames=('rule', 'name', 'grid'))
def _draw(keys, step, *, rule, name, grid):
    union = getattr(rule, name)
    shared = named_keys.named(jax.random.fold_in(jax.random.key(0), step), name)
    size = drawn_size(shared, rule.sizes(union, grid))

    def one(key):
        of_blocks, of_rest = jax.random.split(key)
        shape = (union.num_blocks,)
        corners = drawn_corners(of_blocks, shape, size=size, grid=grid, margin=0)
        covered = inside(corners, size=size, grid=grid).any(axis=0)
        order = jnp.arange(len(covered)) / len(covered)
        if rule.kept == 'random':
            order = jax.random.uniform(of_rest, covered.shape)
        context = lowest(order + covered, count=union.num_context)
        # What is seen is not predicted, whichever is short of patches.
        rest = jnp.where(context, 3.0, order + ~covered)
        return context, lowest(rest, count=union.num_predicted)

    context, predicted = jax.vmap(one)(keys)
    visible = visible_ids(~context, num_visible=union.num_context)
    targets = visible_ids(~predicted, num_visible=union.num_predicted)
    return Blocks(visible, targets[:, None])
