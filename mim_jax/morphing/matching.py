"""The rule of bipartite soft matching, whatever its cosines are computed from."""

import jax.numpy as jnp
from jax import lax


def checked(tokens, tokens_per_step, num_steps, protect_first):
    """The arguments of `bipartite_groups` as arrays, so that Python integers and traced scalars
    share one compilation.
    """
    if tokens.ndim != 3:
        raise ValueError(f'tokens must be [B, N, D], got shape {tokens.shape}.')
    tokens = lax.stop_gradient(tokens).astype(jnp.float32)
    numbers = (tokens_per_step, num_steps, protect_first)
    return tokens, *(jnp.asarray(number, jnp.int32) for number in numbers)


def evened(x, *axes):
    """`x` with a zero more at the end of these axes, of N entries each, where N is odd: a place of
    the list that never holds a token.
    """
    return jnp.pad(x, [(0, size % 2 * (axis in axes)) for axis, size in enumerate(x.shape)])


def sides(x, axis):
    """Sets A and B of what is `evened`: entries at the even and at the odd places of an axis.

    Not taken by a stride: fusing that into a product, XLA for GPUs stops or does not end, as the
    shape has it (jax 0.11, a failed check in `triton_tiling_propagation.cc`).
    """
    x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    return (lax.index_in_dim(x, side, axis + 1, keepdims=False) for side in range(2))


def merge_repeatedly(state, tokens_per_step, num_steps, *, shape, protected, match, fold):
    """Groups [B, N] int32 after at most `num_steps` steps of matching.

    Args:
      state: what the cosines are computed from, of `evened` tokens.
      tokens_per_step, num_steps, protected: int32 scalars, may be traced.
      shape: (B, N).
      match: function of the state, and live, merges and protected by name, to new places [B, M] of
        `evened` tokens, see `new_positions`.
      fold: function of the state, the new places and how many tokens remain of A, to the state of
        the new list; dead places must not add to it.
    """
    num_tokens = shape[1]
    groups = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), shape)
    if num_tokens < 2:
        return groups

    def count(live):
        return jnp.minimum(tokens_per_step, (live - protected) // 2)

    def unfinished(carry):
        step, live, *_ = carry
        return (step < num_steps) & (count(live) > 0)

    def join(carry):
        step, live, groups, state = carry
        merges = count(live)
        position = match(state, live=live, merges=merges, protected=protected)
        state = fold(state, position, (live + 1) // 2 - merges)
        groups = jnp.take_along_axis(position, groups, axis=1)
        return step + 1, live - merges, groups, state

    start = (jnp.int32(0), jnp.int32(num_tokens), groups, state)
    return lax.while_loop(unfinished, join, start)[2]


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
