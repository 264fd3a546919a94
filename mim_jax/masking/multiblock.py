"""Blocks to be predicted and what is left of a large block to predict them from, as in I-JEPA."""

import functools
from dataclasses import dataclass
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from mim_jax import keys as named_keys
from mim_jax.errors import UserError
from mim_jax.masking.rectangles import (
    block_sizes,
    drawn_corners,
    drawn_size,
    inside,
    places,
)
from mim_jax.masking.selection import lowest, visible_ids
from mim_jax.ranges import Count, Positive, PositiveShare, Repeats, check_ordered

TRIES = 20  # places for the context before a target may be seen


@flax.struct.dataclass
class Blocks:
    """What is seen of every image, and what is predicted from that.

    visible: [B,K] int32, places of the patches that the encoder sees.
    targets: [B,T,P] int32, places of the patches of T blocks, each predicted by itself.
    counted: [P] bool, which of them count; the others repeat some that do, to fill the array. None:
      all count.
    """

    visible: jax.Array
    targets: jax.Array
    counted: jax.Array | None = None

    def of(self, tokens):
        """Tokens [B,N,D] at the places of the targets, [B,T,P,D]."""
        flat = self.targets.reshape(self.targets.shape[0], -1, 1)
        found = jnp.take_along_axis(tokens, flat, axis=1)
        return found.reshape(*self.targets.shape, tokens.shape[-1])

    def groups(self, groups):
        """Groups [B,N] int32 of an image's patches as groups [B,T,P] within every target block,
        each of the number of its first member; what does not count is alone.
        """
        found = self.of(groups[..., None])[..., 0]
        same = found[..., :, None] == found[..., None, :]
        if self.counted is not None:
            same &= self.counted & self.counted[:, None]
            same |= jnp.eye(len(self.counted), dtype=bool)
        return jnp.argmax(same, axis=-1).astype(jnp.int32)

    def mean(self, values):
        """Mean of values [B,T,P] over what counts, float32 scalar."""
        if self.counted is None:
            return values.mean()
        return values.mean(where=jnp.broadcast_to(self.counted, values.shape))

    def covered(self, *, num_tokens):
        """Where each target block lies, bool [B,T,N]."""
        slots = jax.nn.one_hot(self.targets, num_tokens, dtype=bool)
        if self.counted is not None:
            slots &= self.counted[:, None]
        return slots.any(axis=2)

    def placed(self, values, *, num_tokens):
        """Values [B,T,P,D] of the targets at their places, [B,N,D]: the mean where blocks overlap,
        0 where none is; and bool [B,N], where one is.
        """
        slots = jax.nn.one_hot(self.targets, num_tokens)  # [B,T,P,N]
        if self.counted is not None:
            slots *= self.counted[:, None]
        number = slots.sum(axis=(1, 2))
        total = jnp.einsum('btpn,btpd->bnd', slots, values, precision=jax.lax.Precision.HIGHEST)
        return total / jnp.maximum(number, 1)[..., None], number > 0


@dataclass(frozen=True)
class MultiBlockMasking:
    """`num_targets` blocks that are predicted, and a context: a large block without their patches.

    Sizes of blocks are drawn once a step, as a function of the step alone, places once an image.
    The context is drawn until `num_context` patches of it are in no target: TRIES times, then as
    often while the last target may be seen, then the last two, … Of its patches so many are kept.

    num_context: patches that the encoder sees of every image, exactly. In the released code every
      device cuts to the least of its batch (more than 10): 50 on average for 128 images of 14 x 14
      patches.
    num_targets: blocks; they may overlap.
    target_scale, target_aspect: share of the patches and height / width of a target, drawn together
      uniformly, see `block_sizes`. Every block is smaller than the grid both ways.
    context_scale: share of the patches of the large block, which is square.
    overlap: 'none', or 'allowed': targets are not taken out of the context.
    kept: 'random' patches of the context, or its 'first' ones row by row as in the released code,
      where the lower right is rarely seen.
    edge: 'free' as in the released code, whose draw of a corner stops one short: no block touches
      the last row and column. 'used': blocks lie anywhere.

    Source: I-JEPA (Assran et al., CVPR 2023) and its released code.
    """

    num_context: Count = 50
    num_targets: Repeats = 4
    target_scale: tuple[PositiveShare, ...] = (0.15, 0.2)
    target_aspect: tuple[Positive, ...] = (0.75, 1.5)
    context_scale: tuple[PositiveShare, ...] = (0.85, 1.0)
    overlap: Literal['none', 'allowed'] = 'none'
    kept: Literal['random', 'first'] = 'random'
    edge: Literal['free', 'used'] = 'free'

    def __post_init__(self):
        check_ordered(self, 'target_scale', 'target_aspect', 'context_scale')

    def count(self, grid):
        """Patches of a grid (h, w) hidden from the encoder in every image."""
        if min(grid) < 2:
            raise UserError(
                f'config.objective.masking: a grid of {grid[0]}x{grid[1]} patches holds no block '
                'that is smaller than it both ways.'
            )
        targets, context = self.sizes(grid)
        if targets.min() < 1:
            raise UserError(
                f'config.objective.masking.target_scale = {self.target_scale}: a block of a grid '
                f'of {grid[0]}x{grid[1]} patches would be empty; raise it.'
            )
        least = int(context.prod(axis=1).min())
        if self.num_context > least:
            raise UserError(
                f'config.objective.masking.num_context = {self.num_context}: the large block has '
                f'{least} patches of a grid of {grid[0]}x{grid[1]}; lower it to about a quarter of '
                'the grid.'
            )
        return grid[0] * grid[1] - self.num_context

    def sizes(self, grid):
        """Sizes of targets and of the large block, each int [DRAWS,2]."""
        largest = tuple(side - 1 for side in grid)
        return (
            block_sizes(grid, scale=self.target_scale, aspect=self.target_aspect, largest=largest),
            block_sizes(grid, scale=self.context_scale, aspect=(1.0, 1.0), largest=largest),
        )

    def __call__(self, keys, *, grid, step):
        """`Blocks` on a grid (h, w) from one PRNG key per image [B] at `step`, an integer that may
        be traced.
        """
        self.count(grid)
        return _draw(keys, jnp.asarray(step), rule=self, grid=tuple(grid))


@functools.partial(jax.jit, static_argnames=('rule', 'grid'))
def _draw(keys, step, *, rule, grid):
    shared = jax.random.fold_in(jax.random.key(0), step)
    target_sizes, context_sizes = rule.sizes(grid)
    target = drawn_size(named_keys.named(shared, 'target'), target_sizes)
    context = drawn_size(named_keys.named(shared, 'context'), context_sizes)
    slots = int(target_sizes.prod(axis=1).max())
    margin = int(rule.edge == 'free')

    def one(key):
        of_targets, of_context, of_rest = jax.random.split(key, 3)
        given = {'size': target, 'grid': grid}
        corners = drawn_corners(of_targets, (rule.num_targets,), margin=margin, **given)
        # Row i: the patches that the context may have while the last i targets may be seen.
        covered = jnp.cumsum(inside(corners, **given), axis=0)[::-1] > 0
        free = jnp.pad(~covered, ((0, 1), (0, 0)), constant_values=True)
        if rule.overlap == 'allowed':
            free = free[-1:]
        given = {'size': context, 'grid': grid}
        tries = drawn_corners(of_context, (len(free), TRIES), margin=margin, **given)
        found = (inside(tries, **given) & free[:, None]).reshape(-1, free.shape[1])
        found = found[jnp.argmax(found.sum(axis=1) >= rule.num_context)]
        order = jnp.arange(free.shape[1]) / free.shape[1]
        if rule.kept == 'random':
            order = jax.random.uniform(of_rest, order.shape)
        seen = lowest(order - found, count=rule.num_context)
        return seen, places(corners, size=target, grid=grid, count=slots)

    seen, targets = jax.vmap(one)(keys)
    visible = visible_ids(~seen, num_visible=rule.num_context)
    return Blocks(visible, targets, jnp.arange(slots) < target[0] * target[1])
