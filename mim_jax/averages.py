"""The running average of the parameters that teachers and evaluations use."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mim_jax.clock import Clock
from mim_jax.config import UNITS
from mim_jax.errors import UserError
from mim_jax.optimizers import Schedule
from mim_jax.ranges import Examples, NotNegative, Number, Percent, Share


@dataclasses.dataclass(frozen=True)
class Average:
    """Config section `train.ema`: after every update average = decay * average + (1 - decay) *
    parameters.

    decay: None keeps no average.
    end_decay: the decay rises to it from `decay`; None: it is constant.
    schedule: along half a cosine, or linearly.
    rise_*: how long the rise takes, after which the decay stays; none given: the whole run.
    parts: names of the parameters' top-level parts that are averaged, as ('encoder', 'projector');
      () all of them.
    """

    decay: Share | None = None
    end_decay: Share | None = None
    schedule: Literal['cosine', 'linear'] = 'cosine'
    rise_steps: Number | None = None
    rise_epochs: NotNegative | None = None
    rise_examples: Examples | None = None
    rise_percent: Percent | None = None
    parts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.end_decay is not None and self.decay is None:
            raise ValueError('end_decay needs decay, where the rise starts.')
        rises = [unit for unit in UNITS if getattr(self, f'rise_{unit}') is not None]
        if rises and self.end_decay is None:
            raise ValueError(f'rise_{rises[0]} needs end_decay, to which the decay rises.')

    def decays(self, clock: Clock) -> Schedule | None:
        """The decay by step (int32 scalar, 0 for the first update); None without an average."""
        if self.decay is None:
            return None
        if self.end_decay is None:
            return optax.constant_schedule(self.decay)
        rise = clock.steps(self, 'rise', path='train.ema')
        rise = clock.total_steps if rise is None else rise
        if rise == 0:
            return optax.constant_schedule(self.end_decay)
        start, end = self.decay, self.end_decay

        def decay(step: jax.Array) -> jax.Array:
            progress = jnp.minimum(step / rise, 1.0)
            if self.schedule == 'linear':
                return start + (end - start) * progress
            return end - (end - start) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

        return decay

    def of(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parts of `params` that are averaged. Raises UserError for one that is not there."""
        for part in self.parts:
            if part not in params:
                raise UserError(
                    f'config.train.ema.parts names {part!r}, but the parameters have the parts '
                    f'{", ".join(sorted(params))}.'
                )
        return {name: params[name] for name in self.parts or params}


def moved(average: dict[str, Any], params: dict[str, Any], decay: jax.Array) -> dict[str, Any]:
    """The average after one update; `params` may have parts that it has not."""
    params = {name: params[name] for name in average}
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)
