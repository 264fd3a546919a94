"""What morphing asks of a grouping."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.morphing.schedules import groups_left


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which tokens of an image belong together. Its dataclass fields are its config section.

    A schedule is `(tokens_per_step, num_steps)`, int32 scalars that may be traced: shapes never
    depend on it, so that one compilation serves every draw. A grouping that knows no steps forms
    the number of groups that bipartite matching without protection would leave (`num_groups`).
    """

    protected = 0  # tokens that never join another
    draws = False  # whether it draws from `keys`
    needs_grid = False  # whether it groups places of a whole grid, and not any set of tokens
    has_steps = True  # whether the number of steps means anything; if not, there is one

    def __call__(self, tokens, schedule, *, keys=None, images=None, grid=None):
        """Groups tokens [B,N,D] (finite, any float dtype).

        keys: typed keys [B], one per image. images: [B,H,W,C] in [0, 1], or None; grid: (h,w) with
        N = h * w, or None: for groupings by place or colour.

        Returns groups [B,N] int32 in 0..N-1: tokens of an image with the same number form a group.
        No gradient flows through it; a schedule that joins nothing leaves every token alone.
        """
        raise NotImplementedError

    def with_target(self, target, schedule, *, merged=None, **given):
        """(target [B,N,D], groups [B,N]): a grouping within the target's network changes both.

        merged: function of the number of tokens to merge, an int32 scalar, that returns them, where
        a network computes the target; the other arguments are those of a call.
        """
        return target, self(target, schedule, **given)

    def num_groups(self, num_tokens, schedule):
        """Groups that the schedule leaves of `num_tokens` tokens; int for integers, else int32."""
        return groups_left(num_tokens, *schedule, protect_first=self.protected > 0)

    def title(self, num_tokens, schedule):
        """What a schedule of two integers does, for pictures."""
        return f'{self.num_groups(num_tokens, schedule)} groups'


class ByNumber(Grouping):
    """A grouping that knows no steps: it forms the number of groups that the schedule leaves."""

    def __call__(self, tokens, schedule, *, keys=None, images=None, grid=None):
        num_tokens = tokens.shape[1]
        num_groups = jnp.int32(self.num_groups(num_tokens, schedule))
        found = self.form(
            lax.stop_gradient(tokens).astype(jnp.float32),
            num_groups,
            keys=keys,
            images=images,
            grid=grid,
        )
        # Tokens that repeat each other would share a group where nothing is to join.
        return jnp.where(num_groups == num_tokens, singletons(tokens), found)

    def form(self, tokens, num_groups, *, keys, images, grid):
        """Groups [B,N] int32 of float32 tokens, `num_groups` (traced) of them."""
        raise NotImplementedError


def singletons(tokens):
    """Groups [B,N] int32 in which every one of the tokens [B,N,D] is alone."""
    batch, num_tokens, _ = tokens.shape
    return jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), (batch, num_tokens))


def placed(groups, places, *, num_tokens):
    """Groups [B,K] int32 of the tokens at `places` [B,K] (all different) as groups [B,num_tokens]
    in which every other token is alone.
    """
    alone = jnp.arange(num_tokens, dtype=jnp.int32)
    numbers = jnp.take_along_axis(places, groups, axis=1)
    return jax.vmap(lambda ids, values: alone.at[ids].set(values))(places, numbers)


def joined_share(groups):
    """Share of the tokens of groups [B,N] that are not alone in theirs, float32 scalar."""
    same = groups[:, :, None] == groups[:, None, :]
    return jnp.mean((same.sum(axis=-1) > 1).astype(jnp.float32))
