"""ColorMAE (Hinojosa et al., ECCV 2024, arXiv 2407.13036): MAE with masks from coloured noise.

White noise is filtered, and the patches at which it is largest stay visible. Its colour, the band
of frequencies that is left, says how they lie: in large clusters (red), apart (blue), or in small
clusters apart from each other (green). Nothing else differs from MAE.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.masking.colored import COLORS, ColoredMasking
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets
from mim_jax.ranges import Percent


@dataclasses.dataclass(frozen=True)
class ColorMAE(MAE):
    """The defaults are those of the released recipe, but for the filters (see `masking`).

    later: colours that follow `masking.color` in the course of the run (an option of the released
      code); () none.
    later_percent: when each begins, in percent of the run.
    """

    masking: ColoredMasking = ColoredMasking()
    later: tuple[str, ...] = ()
    later_percent: tuple[Percent, ...] = ()

    def __post_init__(self):
        for color in self.later:
            if color not in COLORS:
                raise ValueError(f'later has {color!r}, allowed: {", ".join(COLORS)}.')
        starts = tuple(self.later_percent)
        if len(starts) != len(self.later) or list(starts) != sorted(starts):
            raise ValueError(
                f'later_percent = {starts}: it needs one percentage for each of the '
                f'{len(self.later)} colours in later, in ascending order.'
            )

    def noise(self, batch: Batch, step: jax.Array) -> jax.Array:
        """Filtered noise [B,N]; the visible patches are those of its largest numbers."""
        drawn = keys.named(batch['keys'], 'mask')
        if not self.later:
            return self.masking.noise(drawn, grid=self.grid)
        total = self.clock.total_steps
        # In whole steps: a quotient of floats may come out below the one that it equals.
        starts = [math.ceil(total * percent / 100 - 1e-6) for percent in self.later_percent]
        colors = jnp.asarray([COLORS[color] for color in (self.masking.color, *self.later)])
        shares = colors[jnp.sum(step >= jnp.asarray(starts))]
        return self.masking.noise(drawn, grid=self.grid, shares=shares)

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.masking.hide(self.noise(batch, step), grid=self.grid)

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        noise = panels.HeatMap(self.noise(batch, step), title='filtered noise')
        sheets = super().pictures(variables, batch, key, step)
        return {name: [noise, *sheet] for name, sheet in sheets.items()}
