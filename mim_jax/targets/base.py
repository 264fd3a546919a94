"""What an objective asks of a target."""

import dataclasses
from typing import Any

import jax

from mim_jax.config import context
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted at every patch. Its dataclass fields are its config section; `bind` adds
    the student's encoder and the shape and normalisation of the student's images.

    All functions but `bind` need a bound target. `variables` are the objective's collections
    (`params`, `teacher`, `ema`). A target whose predictions can be shown also has
    `panels(prediction, images)` -> `mim_jax.panels`, the last an Image. One that a network computes
    has `merged(variables, images, num_merged)`, which merges so many tokens (int32 scalar) inside
    it and returns (target, groups [B,N] int32).
    """

    encoder: ViT = context()
    inputs: Inputs = context()

    def bind(self, encoder: ViT, inputs: Inputs) -> 'Target':
        """This target for a student; raises UserError where they do not fit (`check`)."""
        self.check(encoder, inputs)
        return dataclasses.replace(self, encoder=encoder, inputs=inputs)

    def check(self, encoder: ViT, inputs: Inputs) -> None:
        """Raises UserError where the target does not fit the student's encoder and images."""

    @property
    def needs_ema(self) -> bool:
        """Whether the target reads `variables['ema']`, the average of the student's parameters."""
        return False

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh frozen parameters ({} if the target has none); can be jitted, reads no file."""
        return {}

    def load(self) -> dict[str, Any]:
        """Frozen parameters read from files, host arrays shaped as `init` makes them; {} if none.

        Raises UserError where a file is missing or does not fit.
        """
        return {}

    def __call__(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Float32 [B,N,D] of images [B,H,W,C] in [0, 1], N patches on the student's grid."""
        raise NotImplementedError
