"""Token morphing: which tokens belong together, and averaging over them.

A schedule (`schedules.py`) says how many tokens join, a grouping (`bipartite.py`) which of them,
and `morph` (`average.py`) averages.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.morphing.average import morph
from mim_jax.morphing.bipartite import bipartite_groups
from mim_jax.morphing.schedules import merges_per_step, sample_schedule

__all__ = ['Morphing', 'bipartite_groups', 'morph', 'sample_schedule']

SCHEDULES = ('random', 'fixed', 'none')


@dataclass(frozen=True)
class Morphing:
    """How tokens are grouped at each draw; the defaults are the paper's.

    Attributes:
      schedule: 'random' draws the number of merged tokens and of steps anew each time; 'fixed'
        takes `num_merged` and `num_steps`; 'none' leaves every token alone (token-wise targets).
      max_merged: with 'random', the most tokens a draw may merge; None means all of them.
      max_steps: with 'random', the most merging steps.
      num_merged: with 'fixed', the tokens to merge; None means half of them.
      num_steps: with 'fixed', the merging steps.
      protect_first: the first patch never joins another. The released code does this, although
        the class token that it was meant for is no longer in the list.

    Source: DTM (arXiv 2401.00254); defaults of the released code.
    """

    schedule: str = 'random'
    max_merged: int | None = None
    max_steps: int = 14
    num_merged: int | None = None
    num_steps: int = 1
    protect_first: bool = True

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f'schedule is {self.schedule!r}, but must be one of {", ".join(SCHEDULES)}.'
            )
        for name in ('max_merged', 'num_merged'):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f'{name} is {value}, but must be at least 0.')
        for name in ('max_steps', 'num_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}, but must be at least 1.')

    def draw(self, key, *, num_tokens):
        """One schedule `(tokens_per_step, num_steps)`, int32 scalars, shared by a whole batch.

        Raises:
          UserError: the schedule asks for more tokens than there are.
        """
        if self.schedule == 'none':
            return jnp.int32(0), jnp.int32(0)
        if self.schedule == 'fixed':
            num_merged = self._at_most('num_merged', num_tokens, default=num_tokens // 2)
            per_step = merges_per_step(num_merged, self.num_steps, num_tokens=num_tokens)
            return per_step, jnp.int32(self.num_steps)
        max_merged = self._at_most('max_merged', num_tokens, default=num_tokens)
        return sample_schedule(key, num_tokens, max_merged, self.max_steps)

    def groups(self, key, target):
        """Draws a schedule and groups the tokens of `target`.

        Args:
          key: one PRNG key, for the draw that the whole batch shares.
          target: [B, N, D]; carries no gradient.

        Returns:
          groups [B, N] int32, for `morph` on target and prediction alike.
        """
        batch, num_tokens, _ = target.shape
        if self.schedule == 'none':
            groups = jnp.arange(num_tokens, dtype=jnp.int32)
            return jnp.broadcast_to(groups, (batch, num_tokens))
        per_step, num_steps = self.draw(key, num_tokens=num_tokens)
        return bipartite_groups(target, per_step, num_steps, protect_first=self.protect_first)

    def _at_most(self, name, num_tokens, *, default):
        value = getattr(self, name)
        value = default if value is None else value
        if value > num_tokens:
            raise UserError(
                f'morphing.{name} is {value}, but an image has only {num_tokens} tokens: '
                f'lower it, or leave it out.'
            )
        return value
