"""Bipartite soft matching on the tokens themselves, in plain float32: less work for few steps.

The rule is that of `bipartite.py`, whose matrix of inner products is exact; here each step
normalises the groups' sums and multiplies them anew. On tokens that are not alike, such as random
ones, both give the same groups. Cosines that differ by less than float32's rounding, as those of a
teacher's tokens do, may be ordered otherwise, and one such pair changes all later steps.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.losses import unit
from mim_jax.morphing.average import group_sums
from mim_jax.morphing.bipartite import new_positions


def bipartite_feature_groups(tokens, tokens_per_step, num_steps, *, protect_first):
    """Arguments, groups and errors of `bipartite.bipartite_groups`."""
    if tokens.ndim != 3:
        raise ValueError(f'tokens must be [B, N, D], got shape {tokens.shape}.')
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
        step, live, groups, sums = carry
        merges = count(live)
        # The mean of a group has the direction of its sum.
        position = match(sums, live=live, merges=merges, protected=protected)
        sums, _ = group_sums(sums, position)  # dead places hold zeros and add nothing
        groups = jnp.take_along_axis(position, groups, axis=1)
        return step + 1, live - merges, groups, sums

    start = (jnp.int32(0), jnp.int32(num_tokens), groups, tokens)
    return lax.while_loop(unfinished, join, start)[2]


def match(features, *, live, merges, protected):
    """One step's matching by `new_positions`, on the cosines of features [B, N, D] float32."""
    features = unit(features)
    similarity = jnp.einsum(
        'bad,bcd->bac', features[:, 0::2], features[:, 1::2], precision=lax.Precision.HIGHEST
    )
    rest = jnp.zeros_like(similarity)
    return new_positions(similarity, rest, live=live, merges=merges, protected=protected)
