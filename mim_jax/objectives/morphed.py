"""What the methods share that compare tokens on group means."""

import dataclasses

from mim_jax.morphing import Morphing
from mim_jax.objectives.base import Objective


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
