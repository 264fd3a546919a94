"""Bipartite soft matching (Token Merging, Bolya et al., ICLR 2023) on the matrix of inner products.

The cosine between two group means equals that between two group sums, so after one product of all
tokens with all tokens every step works on an N x N matrix: the feature width is out of the loop.
All images share the number of live tokens, a traced scalar, so one compiled loop serves every draw.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.morphing import pairs
from mim_jax.morphing.average import indicator_matmul
from mim_jax.morphing.base import Grouping


@dataclasses.dataclass(frozen=True)
class Bipartite(Grouping):
    """Repeated bipartite soft matching on the tokens, see `bipartite_groups`.

    protect_first: the first patch never joins another. The released code of DTM does this, although
      the class token that it was meant for is no longer in the list.
    """

    protect_first: bool = True

    @property
    def protected(self):
        return int(self.protect_first)

    def __call__(self, tokens, schedule, *, keys=None, images=None, grid=None):
        return bipartite_groups(tokens, *schedule, protect_first=self.protect_first)

    def title(self, num_tokens, schedule):
        steps = schedule[1]
        return f'{super().title(num_tokens, schedule)}, {steps} step{"s" if steps > 1 else ""}'


def bipartite_groups(tokens, tokens_per_step, num_steps, *, protect_first):
    """Groups similar tokens of each image by repeated bipartite soft matching.

    In each step, with the t current tokens in order, the even positions are set A and the odd ones
    set B. The r_eff = min(tokens_per_step, (t - p) // 2) tokens of A with the highest cosine to
    their best token of B join it (ties: the lower position); p is 1 with a protected token, else 0.
    A group's feature is the mean of the original tokens in it. The new order is what remains of A,
    in its positional order with a protected token and by descending best cosine without, then B.

    Args:
      tokens: [B, N, D], any float dtype, finite; taken as float32 and compared more finely than
        float32 (see `pairs.py`). A token of norm zero has cosine zero with every other. The groups
        carry no gradient.
      tokens_per_step: r, int32 scalar, may be traced; 0 joins nothing.
      num_steps: k, int32 scalar, may be traced.
      protect_first: whether position 0, which is always in A, never joins another token: it stays
        alone.

    Returns:
      groups [B, N] int32: for every token the number of its group, 0..n-1 in the order in which the
      merged token list stands at the end.

    Raises:
      ValueError: `tokens` is not [B, N, D].
    """
    if tokens.ndim != 3:
        raise ValueError(f'tokens must be [B, N, D], got shape {tokens.shape}.')
    # As arrays, so that Python integers and traced scalars share one compilation.
    tokens_per_step = jnp.asarray(tokens_per_step, jnp.int32)
    num_steps = jnp.asarray(num_steps, jnp.int32)
    tokens = lax.stop_gradient(tokens).astype(jnp.float32)
    protected = jnp.asarray(protect_first, jnp.int32)
    return _groups(tokens, tokens_per_step, num_steps, protected)


@jax.jit
def _groups(tokens, tokens_per_step, num_steps, protected):
    batch, num_tokens, _ = tokens.shape
    groups = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (batch, num_tokens))
    if num_tokens < 2:
        return groups

    def count(live):
        return jnp.minimum(tokens_per_step, (live - protected) // 2)

    def unfinished(carry):
        step, live, *_ = carry
        return (step < num_steps) & (count(live) > 0)

    def join(carry):
        step, live, groups, products = carry
        merges = count(live)
        position = _match(products, live=live, merges=merges, protected=protected)
        # Dead positions hold zeros: wherever they go they add nothing.
        products = _fold(products, position, (live + 1) // 2 - merges)
        groups = jnp.take_along_axis(position, groups, axis=1)
        return step + 1, live - merges, groups, products

    start = (jnp.int32(0), jnp.int32(num_tokens), groups, jnp.stack(pairs.gram(tokens)))
    return lax.while_loop(unfinished, join, start)[2]


def _match(products, *, live, merges, protected):
    """One step's matching by `new_positions`, on inner products [2, B, N, N]."""
    high, low = products
    norms = pairs.inverse_sqrt(*jnp.diagonal(products, axis1=-2, axis2=-1))
    similarity, rest = pairs.cosines(
        high[:, 0::2, 1::2],
        low[:, 0::2, 1::2],
        [x[:, 0::2] for x in norms],
        [x[:, 1::2] for x in norms],
    )
    return new_positions(similarity, rest, live=live, merges=merges, protected=protected)


def new_positions(similarity, rest, *, live, merges, protected):
    """Where each token of the list goes in one step of matching, by the rule of `bipartite_groups`.

    Args:
      similarity, rest: [B, ceil(N / 2), N // 2] float32, tokens of A with tokens of B: ordered by
        `similarity`, and by `rest` where that is equal.
      live: how many of the N places of the list hold tokens; merges: how many tokens of A join,
        at most (live - protected) // 2; protected: 1 if the first stays alone, else 0; int32.

    Returns:
      [B, N] int32: the new place of the token at each place, what remains of A first, then B;
      tokens with the same new place have joined. What dead places say means nothing.
    """
    batch, num_a, num_b = similarity.shape
    num_tokens = num_a + num_b
    index_a = jnp.arange(num_a, dtype=jnp.int32)
    index_b = jnp.arange(num_b, dtype=jnp.int32)
    live_b = live // 2
    live_a = live - live_b
    kept = live_a - merges

    similarity = jnp.where(index_b < live_b, similarity, -jnp.inf)
    best = jnp.max(similarity, axis=-1, keepdims=True)
    rest = jnp.where(similarity == best, rest, -jnp.inf)
    best_rest = jnp.max(rest, axis=-1, keepdims=True)
    partner = jnp.argmax(rest == best_rest, axis=-1).astype(jnp.int32)

    candidate = (index_a >= protected) & (index_a < live_a)
    best = jnp.where(candidate, best[..., 0], -jnp.inf)
    best_rest = jnp.where(candidate, best_rest[..., 0], 0.0)
    rank = _rank(best, best_rest)
    joins = rank < merges
    in_order = jnp.cumsum(~joins, axis=-1, dtype=jnp.int32) - 1
    stays = jnp.where(protected > 0, in_order, rank - merges)
    position_a = jnp.where(joins, kept + partner, stays)
    position_b = jnp.broadcast_to(kept + index_b, (batch, num_b))
    position_b = jnp.pad(position_b, ((0, 0), (0, num_a - num_b)))
    position = jnp.stack([position_a, position_b], axis=-1).reshape(batch, -1)[:, :num_tokens]
    return jnp.clip(position, 0, num_tokens - 1)


def _rank(value, rest):
    """Place [B, A] of each entry in descending order of the pairs (value, rest); ties by index."""
    index = jnp.arange(value.shape[-1])
    mine, other = (value[:, :, None], rest[:, :, None]), (value[:, None, :], rest[:, None, :])
    same = other[0] == mine[0]
    ahead = (other[0] > mine[0]) | (same & (other[1] > mine[1]))
    ahead |= same & (other[1] == mine[1]) & (index[None, :] < index[:, None])
    return jnp.sum(ahead, axis=-1, dtype=jnp.int32)


def _fold(products, position, kept):
    """Moves rows and columns of [2, B, N, N] to their new positions; those that meet are added.

    Every sum is exact (see `pairs.gram`), so both forms give the same matrix.
    """
    return lax.platform_dependent(products, position, kept, cpu=_fold_scatter, default=_fold_matmul)


def _fold_scatter(products, position, _):
    size = position.shape[-1]

    def one(matrix, position):
        index = (position[:, None] * size + position[None, :]).reshape(-1)
        total = jnp.zeros_like(matrix).reshape(-1)
        total = total.at[index].add(matrix.reshape(-1), mode='promise_in_bounds')
        return total.reshape(matrix.shape)

    per_image = jax.vmap(one)
    return jax.vmap(per_image, in_axes=(0, None))(products, position)


def _fold_matmul(products, position, kept):
    products = jnp.swapaxes(_fold_rows(products, position, kept), -1, -2)
    return _fold_rows(products, position, kept)


def _fold_rows(products, position, kept):
    """Set A by a product with a 0/1 matrix; B keeps its order, so that it only moves as a whole."""
    num_tokens = position.shape[-1]
    place = jnp.arange(num_tokens)[None, :, None] == position[:, None, 0::2]
    moved = jax.vmap(indicator_matmul, in_axes=(None, 0))(place, products[:, :, 0::2])
    padding = (num_tokens + 1) // 2
    rest = jnp.pad(products[:, :, 1::2], ((0, 0), (0, 0), (0, padding), (0, 0)))
    return moved + jnp.roll(rest, kept, axis=-2)
