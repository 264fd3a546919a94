"""Exact counts: choosing a fixed number of patches by score, and listing the visible ones."""

import jax.numpy as jnp


def lowest(score, *, count):
    """Mask [..., N] that is True at exactly `count` lowest scores [..., N] (ties: lowest index)."""
    order = jnp.argsort(score, axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    return rank < count


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
