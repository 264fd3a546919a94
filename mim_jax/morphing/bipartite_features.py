"""Bipartite soft matching on the tokens themselves, in plain float32: less work, less exact.

The rule is that of `bipartite.py`, whose matrix of inner products is exact; here each step
normalises the groups' sums and multiplies them anew. On random tokens both give the same groups.
Cosines that differ by less than float32's rounding, as those of a teacher's tokens may, can be
ordered otherwise, and one such pair changes all later steps.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.losses import unit
from mim_jax.morphing.average import group_sums
from mim_jax.morphing.matching import evened, merge_repeatedly, new_positions, sides


@jax.jit
def feature_groups(tokens, tokens_per_step, num_steps, protected):
    """Groups [B, N] int32 of `bipartite.bipartite_groups`, from its arguments as arrays."""

    def fold(sums, position, _):
        return group_sums(sums, position)[0]  # dead places hold zeros

    # The mean of a group has the direction of its sum.
    return merge_repeatedly(
        evened(tokens, 1),
        tokens_per_step,
        num_steps,
        shape=tokens.shape[:2],
        protected=protected,
        match=match,
        fold=fold,
    )


def match(features, *, live, merges, protected):
    """One step's matching by `new_positions`, on cosines of `evened` features [B, N, D] float32."""
    similarity = jnp.einsum(
        'bad,bcd->bac', *sides(unit(features), 1), precision=lax.Precision.HIGHEST
    )
    rest = jnp.zeros_like(similarity)
    return new_positions(similarity, rest, live=live, merges=merges, protected=protected)
