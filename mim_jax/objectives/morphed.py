"""What the methods share that compare tokens on group means."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT
from mim_jax.morphing import Morphing, joined_share
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.targeted import Targeted


@dataclasses.dataclass(frozen=True)
class Morphed(Objective):
    """An objective whose tokens can be morphed.

    morphing: groups over which prediction and target are averaged before they are compared.
    """

    morphing: Morphing = dataclasses.field(default_factory=lambda: Morphing(schedule='none'))

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        bound = super().bind(encoder, inputs, clock)
        whole = bound.num_grouped == bound.num_patches
        bound.morphing.check(bound.num_grouped, network=bound.merges_in_network, grid=whole)
        return bound

    @property
    def num_grouped(self) -> int:
        """How many tokens of an image are grouped: those of the whole grid, unless a method groups
        fewer.
        """
        return self.num_patches

    @property
    def merges_in_network(self) -> bool:
        """Whether `grouped` gives `merged`, with which tokens are merged inside a network."""
        return False

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


@dataclasses.dataclass(frozen=True)
class MorphedTargets(Morphed, Targeted):
    """Groups are formed of a target at every patch."""

    @property
    def merges_in_network(self) -> bool:
        return hasattr(self.target, 'merged')

    def target_of(self, variables: Variables, batch: Batch) -> jax.Array:
        """What the tokens of a batch are compared with, [B,N,D]."""
        return self.targets(variables, batch['images'])

    def morphed(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        """What a grouping may look at beside the target."""
        return {
            'keys': keys.named(batch['keys'], 'morphing'),
            'images': batch['images'],
            'grid': self.grid,
            'merged': functools.partial(self.merged_targets, variables, batch['images']),
        }

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        return self.target_of(variables, batch), self.morphed(variables, batch)

    def variances(
        self, variables: Variables, batch: Batch, prediction: jax.Array
    ) -> dict[str, jax.Array]:
        """Of prediction [...,D] and target over all tokens of the batch, as means over their
        numbers: a prediction without any is a constant.
        """
        found = {'prediction': prediction, 'target': self.target_of(variables, batch)}
        return {
            f'{name}_variance': tokens.astype(jnp.float32)
            .reshape(-1, tokens.shape[-1])
            .var(0)
            .mean()
            for name, tokens in found.items()
        }
