"""What the methods share that compare tokens on group means."""

import dataclasses
from typing import Any

import jax

from mim_jax.morphing import Morphing, joined_share
from mim_jax.objectives.base import Batch, Objective, Variables


@dataclasses.dataclass(frozen=True)
class Morphed(Objective):
    """An objective whose tokens can be morphed; its `bind` has `morphing.check` say whether it can.

    morphing: groups over which prediction and target are averaged before they are compared.
    """

    morphing: Morphing = dataclasses.field(default_factory=lambda: Morphing(schedule='none'))

    @property
    def num_grouped(self) -> int:
        """How many tokens of an image are grouped: those of the whole grid, unless a method groups
        fewer.
        """
        return self.grid[0] * self.grid[1]

    @property
    def batch_parts(self) -> int:
        return self.morphing.shares(self.num_grouped)

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The tokens [B,N,D] that are grouped, and what else `morphing.groups` is given of them."""
        raise NotImplementedError

    def health(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        if self.morphing.schedule == 'none':
            return {}
        target, given = self.grouped(variables, batch)
        return {'morphed_share': joined_share(self.morphing.groups(key, target, **given))}
