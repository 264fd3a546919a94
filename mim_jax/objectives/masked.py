"""What the methods share that hide a number of patches which is known before any draw."""

import dataclasses

import jax

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.inputs import Inputs
from mim_jax.masking import hidden_ids, visible_ids
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Some patches of an image are hidden. A method adds `masking`, which says which."""

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        bound = super().bind(encoder, inputs, clock)
        self.masking.count(bound.grid)  # says what is wrong where the mask does not fit the grid
        return bound

    @property
    def num_hidden(self) -> int:
        """Hidden patches of an image."""
        return self.masking.count(self.grid)

    @property
    def num_visible(self) -> int:
        """Visible patches of an image."""
        return self.num_patches - self.num_hidden

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.masking(keys.named(batch['keys'], 'mask'), grid=self.grid)

    def visible(self, mask: jax.Array | None) -> jax.Array | None:
        """Places [B,K] int32 of the patches that `mask` [B,N] leaves visible; None, which is
        all of them, where it is None.
        """
        return None if mask is None else visible_ids(mask, num_visible=self.num_visible)

    def places(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Places int32 of the visible [B,K] and of the hidden patches [B,M] of `mask` [B,N]."""
        return self.visible(mask), hidden_ids(mask, num_hidden=self.num_hidden)
