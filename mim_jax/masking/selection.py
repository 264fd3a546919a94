"""Exact counts: choosing a fixed number of patches by score, and listing the chosen ones."""

import jax
import jax.numpy as jnp


def lowest(score, *, count):
    """Mask [..., N] that is True at exactly `count` lowest scores [..., N] (ties: lowest index).

    count: may be traced.
    """
    order = jnp.argsort(score, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return rank < count


def drawn_by_weight(keys, weights, *, count):
    """Mask [B, N] with `count` True in every row: a draw without replacement in which each patch is
    taken with probability proportional to its weight among those left.

    Args:
      keys: typed PRNG keys [B].
      weights: [B, N], not negative; patches of weight 0 are drawn last, in random order.
      count: may be traced.

    Source: the Gumbel top-k form (Efraimidis and Spirakis 2006; Kool et al., ICML 2019).
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (weights.shape[-1],)))(keys)
    # The least normal number stands for 0: its logarithm is far below that of any other weight.
    score = jnp.log(jnp.maximum(weights, jnp.finfo(jnp.float32).tiny)) + noise
    return lowest(-score, count=count)


def hardest_first(keys, score, *, num_hardest, count):
    """Mask [B, N] with `count` True in every row: the `num_hardest` patches of highest `score`, the
    others drawn uniformly from the rest.

    Args:
      keys: typed PRNG keys [B].
      score: [B, N].
      num_hardest: int32 scalar, may be traced, at most `count`.
      count: static or traced.
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, (score.shape[-1],)))(keys)
    return lowest(jnp.where(lowest(-score, count=num_hardest), -1.0, noise), count=count)


def visible_ids(mask, *, num_visible):
    """Positions of the visible patches, ascending.

    Args:
      mask: [B, N] bool, True = hidden, with `num_visible` entries False in every row.
      num_visible: K, static.

    Returns:
      [B, K] int32.
    """
    order = jnp.argsort(mask, axis=-1, stable=True)
    return order[:, :num_visible].astype(jnp.int32)


def hidden_ids(mask, *, num_hidden):
    """Positions [B, num_hidden] int32 of the hidden patches of `mask` [B, N] bool, ascending;
    `num_hidden` (static) are True in every row.
    """
    return visible_ids(~mask, num_visible=num_hidden)


def in_places(at_visible, at_hidden, *, visible_ids, hidden_ids):
    """Tokens [B, N, D] in the order of their patches, from those of visible ones [B, K, D] and of
    hidden ones [B, M, D], whose places are `visible_ids` [B, K] and `hidden_ids` [B, M].
    """
    order = jnp.argsort(jnp.concatenate([visible_ids, hidden_ids], axis=1), axis=1)
    tokens = jnp.concatenate([at_visible, at_hidden], axis=1)
    return jnp.take_along_axis(tokens, order[..., None], axis=1)


def mask_without(places, *, num_patches):
    """Mask [B, num_patches] bool, True = hidden, that leaves `places` [B, K] int32 visible."""
    hidden = jnp.ones((len(places), num_patches), bool)
    return jax.vmap(lambda row, ids: row.at[ids].set(False))(hidden, places)
