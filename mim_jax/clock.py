"""The clock of a run: durations of a config as steps, and how far a step is."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.config import UNITS
from mim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Clock:
    """How long a run is and how far it has come: examples per step, examples per epoch (None if
    unknown) and, once known, total steps.

    whole_batches: an epoch is as many steps as its examples give whole batches, as where a loader
      drops the last, partial one (`drop_last` in PyTorch); else a step more counts in part.
    """

    batch_size: int
    epoch_examples: int | None = None
    total_steps: int | None = None
    whole_batches: bool = False

    def progress(self, step: jax.Array | int) -> jax.Array:
        """How far the run is after `step` updates (may be traced), from 0 to 1, float32."""
        return jnp.minimum(jnp.asarray(step, jnp.float32) / self.total_steps, 1.0)

    def duration(self, section: Any, name: str, *, path: str) -> float | None:
        """The duration `name` of a section in steps, not rounded: one of `name_steps`, `_examples`,
        `_epochs`, `_percent`, or None.

        Raises UserError for several, a negative one, or epochs where their size is not known.
        """
        found = [(unit, getattr(section, f'{name}_{unit}', None)) for unit in UNITS]
        found = [(unit, value) for unit, value in found if value is not None]
        if not found:
            return None
        if len(found) > 1:
            names = ' and '.join(f'{name}_{unit}' for unit, _ in found)
            raise UserError(f'config.{path}: {names} are both given: keep one of them.')
        unit, value = found[0]
        if value < 0:
            raise UserError(
                f'config.{path}.{name}_{unit} = {value}: a duration cannot be negative.'
            )
        if unit == 'examples':
            return value / self.batch_size
        if unit == 'epochs':
            if self.epoch_examples is None:
                raise UserError(
                    f'config.{path}.{name}_epochs: the size of an epoch is not known here; '
                    f'use {name}_steps.'
                )
            if self.whole_batches:
                return value * self._whole_batches()
            # In this order: a whole number of steps comes out as one.
            return value * self.epoch_examples / self.batch_size
        return value if unit == 'steps' else value / 100 * self.total_steps

    def _whole_batches(self) -> int:
        whole = self.epoch_examples // self.batch_size
        if not whole:
            raise UserError(
                f'config.train.whole_batches = True, but {self.epoch_examples} examples are no '
                f'whole batch of {self.batch_size}; lower data.batch_size, or set it to False.'
            )
        return whole

    def steps(self, section: Any, name: str, *, path: str) -> int | None:
        """That duration in whole steps: rounded up, a share of the run to the nearest."""
        duration = self.duration(section, name, path=path)
        if duration is None:
            return None
        share = getattr(section, f'{name}_percent', None) is not None
        return round(duration) if share else math.ceil(duration)
