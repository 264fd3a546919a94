"""Token Merging inside the teacher: in every block similar tokens become one.

Nothing shrinks: all tokens keep their places, and each carries the mean of its group. A query that
meets a group's key once for each of its tokens weighs it as proportional attention does, which
adds the logarithm of the size to the logits of a merged token, so that both forms give the same.
"""

import dataclasses
from typing import Any

import flax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.models.hooks import Hook
from mim_jax.morphing.average import morph
from mim_jax.morphing.base import Grouping
from mim_jax.morphing.bipartite_features import match
from mim_jax.morphing.matching import evened

NO_NETWORK = (
    "config.objective.morphing.grouping 'layerwise' merges tokens inside the network that computes "
    'the target, and this target or method has none to offer: choose another grouping or target.'
)


@dataclasses.dataclass(frozen=True)
class Layerwise(Grouping):
    """Bipartite matching on the keys of every block of the teacher, whose merged tokens are the
    target.

    The tokens to merge are spread over the teacher's blocks; the schedule's steps mean nothing. The
    class token never joins and is never joined; registers take no part. Needs a target that is
    computed by a network. A relative position bias stays that of every original token.

    Source: Token Merging (Bolya et al., ICLR 2023).
    """

    has_steps = False

    def with_target(self, target, schedule, *, merged=None, **given):
        if merged is None:
            raise UserError(NO_NETWORK)
        return merged(schedule[0])

    def title(self, num_tokens, schedule):
        return f'{min(schedule[0], num_tokens)} tokens to merge in the teacher'


@flax.struct.dataclass
class TokenMerging(Hook):
    """One merging in every block, between attention and MLP: its tokens are means of their groups.

    The mean over heads of a block's keys is matched, by the rule of `bipartite_groups`, the class
    token protected. The state: groups [B,S - num_registers] int32 of class token and patches so
    far, and their number.

    tokens_per_block: int32 scalar, may be traced: how many tokens join in each block.
    class_token, num_registers: what stands before the patches.
    """

    tokens_per_block: Any
    class_token: bool = flax.struct.field(pytree_node=False)
    num_registers: int = flax.struct.field(pytree_node=False)

    def start(self, tokens):
        batch, length, _ = tokens.shape
        length -= self.num_registers
        groups = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        return groups, jnp.int32(length)

    def between(self, tokens, keys, state, index):
        groups, live = state
        protected = int(self.class_token)
        prefix = protected + self.num_registers
        first, registers, patches = jnp.split(tokens, [protected, prefix], axis=1)
        tokens = jnp.concatenate([first, patches], axis=1)
        keys = jnp.mean(keys.astype(jnp.float32), axis=2)
        keys = jnp.concatenate([keys[:, :protected], keys[:, prefix:]], axis=1)

        # Tokens of a group have one key: the first of them speaks for all.
        numbers = jnp.arange(groups.shape[1])
        speaker = jnp.argmax(groups[:, None, :] == numbers[None, :, None], axis=-1)
        features = jnp.take_along_axis(keys, speaker[..., None], axis=1)
        per_block = jnp.asarray(self.tokens_per_block, jnp.int32)
        merges = jnp.minimum(per_block, (live - protected) // 2)
        position = match(
            evened(features, 1), live=live, merges=merges, protected=jnp.int32(protected)
        )
        # A list in which nothing joins keeps its order.
        groups = jnp.where(merges > 0, jnp.take_along_axis(position, groups, axis=1), groups)

        tokens = morph(tokens, groups).astype(tokens.dtype)
        first, patches = tokens[:, :protected], tokens[:, protected:]
        tokens = jnp.concatenate([first, registers, patches], axis=1)
        return tokens, (groups, live - merges)

    def groups(self, state):
        """Groups [B,N] int32 of the patches: those that were merged have the same number."""
        protected = int(self.class_token)
        return state[0][:, protected:] - protected  # group 0 is the class token's
