"""Block-wise masking, as in BEiT, with the exact count of BEiT v2."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.errors import UserError
from mim_jax.masking.selection import lowest
from mim_jax.ranges import Count, Positive

TRIES = 10  # failed attempts to place one block before the drawing ends
# Tries in one turn of the loop. A GPU asks its host after every turn whether there is another.
TOGETHER = 4


@dataclass(frozen=True)
class BlockMasking:
    """Hides rectangular blocks until `num_masked` patches are hidden.

    Each block: budget = min(patches still to hide, max_block); up to 10 tries draw an area
    ~ U(min_block, budget), an aspect ratio height / width, log-uniform in [min_aspect, max_aspect],
    and a place; a try counts if the block is smaller than the grid both ways and hides at least 1
    and at most `budget` more patches. When 10 tries fail, the missing patches are drawn at random.

    num_masked: patches hidden in every image, exactly.
    min_block: smallest area drawn, in patches (near the end the budget is smaller: then the
      largest).
    max_block: largest area, in patches; None means `num_masked`.
    min_aspect, max_aspect: range of height / width; max_aspect None means 1 / min_aspect.

    Source: BEiT and BEiT v2, the mask generators of the released code.
    """

    num_masked: Count = 75
    min_block: Count = 16
    max_block: Count | None = None
    min_aspect: Positive = 0.3
    max_aspect: Positive | None = None

    def __post_init__(self):
        if self.max_block is not None and self.max_block < self.min_block:
            raise ValueError(
                f'max_block = {self.max_block}: it must be at least min_block = {self.min_block}.'
            )
        low, high = self._aspects()
        if low > high:
            raise ValueError(
                f'min_aspect = {self.min_aspect}, max_aspect = {self.max_aspect}: they must be in '
                f'this order.'
            )

    def count(self, grid):
        """Patches hidden in every image of a grid (h, w)."""
        num_patches = grid[0] * grid[1]
        if self.num_masked >= num_patches:
            raise UserError(
                f'config.objective.masking.num_masked = {self.num_masked}: an image has only '
                f'{num_patches} patches, of which at least one must stay visible; lower it.'
            )
        largest = (grid[0] - 1) * (grid[1] - 1)
        if self.min_block > largest:
            raise UserError(
                f'config.objective.masking.min_block = {self.min_block}: a block must be smaller '
                f'than the grid of {grid[0]}x{grid[1]} patches both ways, so {largest} patches '
                f'at most; lower it.'
            )
        return self.num_masked

    def __call__(self, keys, *, grid):
        """mask [B, N] bool, True = hidden, from one PRNG key per image [B]."""
        self.count(grid)
        return _hide(keys, rule=self, grid=tuple(grid))

    def _aspects(self):
        if self.max_aspect is not None:
            return self.min_aspect, self.max_aspect
        return self.min_aspect, 1 / self.min_aspect if self.min_aspect > 0 else 0


@functools.partial(jax.jit, static_argnames=('rule', 'grid'))
def _hide(keys, *, rule, grid):
    def hide(key):
        key_blocks, key_rest = jax.random.split(key)
        mask, _, _ = _draw_blocks(key_blocks, rule=rule, grid=grid)
        # Hidden patches come first, at random; beyond them the order of the others fills up.
        noise = jax.random.uniform(key_rest, (grid[0] * grid[1],))
        return lowest(noise - mask.reshape(-1), count=rule.num_masked)

    return jax.vmap(hide)(keys)


def _draw_blocks(key, *, rule, grid):
    """Blocks for one image: `(mask [h, w], patches hidden, blocks placed)`, before the filling up.

    The loop is over tries and not over blocks, so that images of a batch wait for each other as
    little as possible.
    """
    limit = rule.num_masked if rule.max_block is None else rule.max_block
    rows, columns = jnp.arange(grid[0])[:, None], jnp.arange(grid[1])

    def unfinished(carry):
        _, hidden, _, _, failed = carry
        return (hidden < rule.num_masked) & (failed < TRIES)

    def attempt(carry):
        mask, hidden, blocks, turn, failed = carry
        budget = jnp.minimum(rule.num_masked - hidden, limit)
        top, left, height, width = _draw_block(
            jax.random.fold_in(key, turn), budget, rule=rule, grid=grid
        )
        block = (rows >= top) & (rows < top + height) & (columns >= left)
        block &= columns < left + width
        new = jnp.sum(block & ~mask, dtype=jnp.int32)
        accept = (height < grid[0]) & (width < grid[1]) & (new > 0) & (new <= budget)
        return (
            mask | (block & accept),
            hidden + new * accept,
            blocks + accept,
            turn + 1,
            jnp.where(accept, 0, failed + 1),
        )

    def attempts(carry):
        for _ in range(TOGETHER):
            go_on, new = unfinished(carry), attempt(carry)
            carry = jax.tree.map(functools.partial(jnp.where, go_on), new, carry)
        return carry

    zero = jnp.int32(0)
    start = (jnp.zeros(grid, bool), zero, zero, zero, zero)
    return lax.while_loop(unfinished, attempts, start)[:3]


def _draw_block(key, budget, *, rule, grid):
    """`(top, left, height, width)` int32 of one try; height and width may exceed the grid."""
    low, high = (math.log(aspect) for aspect in rule._aspects())
    area, aspect, down, across = jax.random.uniform(key, (4,))
    # With a budget below min_block the interval runs backwards, as in the released code.
    area = rule.min_block + area * (budget - rule.min_block)
    aspect = jnp.exp(low + aspect * (high - low))
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    top = jnp.floor(down * (grid[0] - height + 1)).astype(jnp.int32)
    left = jnp.floor(across * (grid[1] - width + 1)).astype(jnp.int32)
    return top, left, height, width
