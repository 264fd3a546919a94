"""What the methods share that learn from a target at every patch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Objective, Variables
from mim_jax.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class Targeted(Objective):
    """An encoder and a target; a method adds what stands between them.

    target: what is predicted, one of TARGETS.
    """

    target: Any = choice(TARGETS, 'pixels')

    @property
    def averaged(self) -> tuple[str, ...]:
        return ('encoder',) if self.target.needs_ema else ()

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        target = self.target.bind(encoder, inputs)
        return dataclasses.replace(super().bind(encoder, inputs, clock), target=target)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        """Parameters beside the encoder's, for targets of `features` numbers."""
        raise NotImplementedError

    def init(self, key: jax.Array, images: Any) -> Variables:
        encoder = self.encoder.init(keys.named(key, 'encoder'), images)['params']
        variables = {'params': {'encoder': encoder}}
        teacher = self.target.init(keys.named(key, 'teacher'))
        if teacher:
            variables['teacher'] = teacher
        features = self.target_width(variables, images)
        variables['params'] |= self.init_predictor(keys.named(key, 'predictor'), features)
        return variables

    def pretrained(self) -> Variables:
        teacher = self.target.load()
        return {'teacher': teacher} if teacher else {}

    def targets(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Target float32 [B,N,D] for images [B,H,W,C] in [0, 1]; no gradient flows into it."""
        return self.finish(self.target(variables, images))

    def merged_targets(
        self, variables: Variables, images: jax.Array, num_merged: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Target and groups [B,N] int32, `num_merged` tokens merged inside the target's network."""
        target, groups = self.target.merged(variables, images, num_merged)
        return self.finish(target), groups

    def finish(self, target: jax.Array) -> jax.Array:
        """The target [B,N,D] as it is compared, token by token."""
        return jax.lax.stop_gradient(target.astype(jnp.float32))

    def target_width(self, variables: Variables, images: Any) -> int:
        """D of the target, from shapes alone."""
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
        # A target by the average of the parameters has the shapes of the parameters.
        variables = {**variables, 'ema': variables['params']}
        return jax.eval_shape(self.targets, variables, one).shape[-1]
