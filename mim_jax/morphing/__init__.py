"""Token morphing: which tokens belong together, and averaging over them.

A schedule (`schedules.py`) says how many tokens join, a grouping (`bipartite.py`) which of them,
and `morph` (`average.py`) averages.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.morphing.average import morph
from mim_jax.morphing.bipartite import bipartite_groups
from mim_jax.morphing.schedules import groups_left, merges_per_step, sample_schedule

__all__ = ['Morphing', 'bipartite_groups', 'morph', 'sample_schedule']


@dataclass(frozen=True)
class Morphing:
    """How tokens are grouped; the defaults are those of the released code.

    schedule: 'random' draws the number of merged tokens and of steps anew each time; 'fixed' takes
      `num_merged` and `num_steps`; 'none' leaves every token alone (token-wise targets).
    num_draws: with 'random', schedules drawn per training step; the loss is the mean over them.
    max_merged: with 'random', the most tokens that a draw may ask to merge; None means all. Divided
      into steps it is rounded up to whole tokens per step.
    max_steps: with 'random', the most merging steps.
    num_merged: with 'fixed', the tokens to merge; None means half of them.
    num_steps: with 'fixed', the merging steps.
    protect_first: the first patch never joins another. The released code does this, although the
      class token that it was meant for is no longer in the list.

    Source: DTM (arXiv 2401.00254) and its released code.
    """

    schedule: Literal['random', 'fixed', 'none'] = 'random'
    num_draws: int = 2
    max_merged: int | None = None
    max_steps: int = 14
    num_merged: int | None = None
    num_steps: int = 1
    protect_first: bool = True

    def __post_init__(self):
        if self.schedule not in ('random', 'fixed', 'none'):
            raise ValueError(f'schedule = {self.schedule!r}: choose random, fixed or none.')
        for name in ('max_merged', 'num_merged'):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f'{name} = {value}: it must be at least 0.')
        for name in ('num_draws', 'max_steps', 'num_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} = {getattr(self, name)}: it must be at least 1.')

    def draw(self, key, *, num_tokens):
        """One schedule `(tokens_per_step, num_steps)`, int32 scalars, shared by a whole batch.

        Raises:
          UserError: the schedule asks for more tokens than there are.
        """
        if self.schedule == 'random':
            return sample_schedule(key, num_tokens, self._most(num_tokens), self.max_steps)
        if self.schedule == 'fixed':
            per_step = merges_per_step(
                self._most(num_tokens), self.num_steps, num_tokens=num_tokens
            )
            return jnp.int32(per_step), jnp.int32(self.num_steps)
        return jnp.int32(0), jnp.int32(0)

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

    def pairs(self, key, prediction, target):
        """`[(prediction, target), ...]`, both [B, N, D] float32 and morphed by the same groups.

        One pair per draw; the loss is the mean of a distance over all tokens and pairs. With
        schedule 'none' the one pair that was given.
        """
        if self.schedule == 'none':
            return [(prediction.astype(jnp.float32), target.astype(jnp.float32))]
        draws = self.num_draws if self.schedule == 'random' else 1
        groups = [self.groups(key, target) for key in jax.random.split(key, draws)]
        return [(morph(prediction, g), morph(target, g)) for g in groups]

    def examples(self, target):
        """Groups for pictures: int32 [S, B, N] and S titles, from weak to strong morphing.

        With 'random' four schedules that span what may be drawn, with 'fixed' the one there is.
        """
        num_tokens = target.shape[1]
        most = self._most(num_tokens)
        schedules = [(most, self.num_steps)]
        if self.schedule == 'random':
            steps = self.max_steps
            schedules = [(most * i // 4, -(-steps * i // 4)) for i in range(1, 5)]
        found, titles = [], []
        for num_merged, num_steps in schedules:
            per_step = merges_per_step(num_merged, num_steps, num_tokens=num_tokens)
            found.append(
                bipartite_groups(target, per_step, num_steps, protect_first=self.protect_first)
            )
            left = groups_left(num_tokens, per_step, num_steps, protect_first=self.protect_first)
            titles.append(f'{left} groups, {num_steps} step{"s" if num_steps > 1 else ""}')
        return jnp.stack(found), tuple(titles)

    def _most(self, num_tokens):
        name = 'max_merged' if self.schedule == 'random' else 'num_merged'
        most = getattr(self, name)
        if most is None:
            return num_tokens if self.schedule == 'random' else num_tokens // 2
        if most > num_tokens:
            raise UserError(
                f'config.objective.morphing.{name} = {most}: an image has only {num_tokens} '
                f'tokens; lower it, or set it to None.'
            )
        return most
