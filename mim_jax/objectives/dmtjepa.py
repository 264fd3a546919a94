"""DMT-JEPA (Mo and Yun, arXiv 2405.17995): I-JEPA with targets gathered from like neighbours.

What the average of the encoder has at a patch is replaced by what a head of class attention gathers
from those of its neighbours that are most like it; the same head gathers the context's tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.aggregation import Aggregation, alike_neighbours
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.ijepa import IJEPA
from mim_jax.panels import Sheets
from mim_jax.ranges import Count, Side
from mim_jax.targets import EMA


@dataclasses.dataclass(frozen=True)
class DMTJEPA(IJEPA):
    """The defaults are those of the released recipe.

    window: side of the square around a patch, odd, in which its neighbours lie; at an edge of the
      grid it goes on at the opposite one.
    neighbours: so many of them, those most like the patch by cosine, are gathered.
    """

    target: Any = choice({'ema': EMA}, 'ema')
    window: Side = 3
    neighbours: Count = 4

    averaged = ('encoder', 'aggregation')

    def __post_init__(self):
        if self.window % 2 == 0 or self.neighbours >= self.window**2:
            raise ValueError(
                f'window = {self.window}, neighbours = {self.neighbours}: the side must be odd, '
                'and the square hold more patches than are gathered.'
            )

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        bound = super().bind(encoder, inputs, clock)
        if self.window > min(bound.grid):
            raise UserError(
                f'config.objective.window = {self.window} is more than the grid of '
                f'{bound.grid[0]}x{bound.grid[1]} patches has; lower it.'
            )
        return bound

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        params = super().init_predictor(key, features)
        tokens = jnp.zeros((1, 1, self.encoder.width))
        own = self._head().init(keys.named(key, 'aggregation'), tokens)['params']
        return {**params, 'aggregation': own}

    def context(self, params: Any, tokens: jax.Array) -> jax.Array:
        return self._head().apply({'params': params['aggregation']}, tokens)

    def targets(self, variables: Variables, images: jax.Array) -> jax.Array:
        return self.gathered(variables, super().targets(variables, images))

    def merged_targets(
        self, variables: Variables, images: jax.Array, num_merged: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        target, groups = super().merged_targets(variables, images, num_merged)
        return self.gathered(variables, target), groups

    def target_width(self, variables: Variables, images: Any) -> int:
        return self.encoder.width

    def gathered(self, variables: Variables, target: jax.Array) -> jax.Array:
        """Of every token of the target [B,N,D] what the average of the head gathers around it."""
        params = {'params': variables['ema']['aggregation']}
        found = self._head().apply(params, target, self.alike(target), method='around')
        return jax.lax.stop_gradient(found.astype(jnp.float32))

    def alike(self, target: jax.Array) -> jax.Array:
        """Places [B,N,neighbours] of the tokens that are gathered for each."""
        given = {'grid': self.grid, 'window': self.window, 'count': self.neighbours}
        return alike_neighbours(target, **given)

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        chosen = self.alike(super().targets(variables, batch['images']))
        counts = jax.nn.one_hot(chosen, self.num_patches).sum(axis=(1, 2))
        sheets = super().pictures(variables, batch, key, step)
        shown = panels.HeatMap(counts, title='how often gathered')
        return {**sheets, 'blocks': [*sheets['blocks'], shown]}

    def _head(self) -> Aggregation:
        c = self.encoder
        return Aggregation(c.heads, c.norm_eps, c.initialization, c.dtype)
