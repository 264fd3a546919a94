"""What an objective asks of a target."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """What is predicted at every patch. Its dataclass fields are its config section.

    `inputs` is a `mim_jax.inputs.Inputs` (shape and normalisation of the student's images),
    `encoder` the student's `ViT`, `variables` the objective's collections (`params`, `teacher`,
    `ema`). A target that can be shown as an image also has
    `to_images(prediction, images, *, inputs, encoder)` -> [B,H,W,C] in about [0, 1]. One that a
    network computes has `merged(images, num_merged, *, inputs, encoder, variables)`, which merges
    so many tokens (int32 scalar) inside it and returns (target, groups [B,N] int32).
    """

    @property
    def needs_ema(self) -> bool:
        """Whether the target reads `variables['ema']`, the average of the student's parameters."""
        return False

    def check(self, *, encoder: Any, inputs: Any) -> None:
        """Raises UserError where the target does not fit the student's encoder and images."""

    def init(self, key: jax.Array, inputs: Any) -> dict:
        """Fresh frozen parameters ({} if the target has none); can be jitted, reads no file."""
        return {}

    def load(self, inputs: Any) -> dict:
        """Frozen parameters read from files, host arrays shaped as `init` makes them; {} if none.

        Raises UserError where a file is missing or does not fit.
        """
        return {}

    def __call__(
        self, images: jax.Array, *, inputs: Any, encoder: Any, variables: dict
    ) -> jax.Array:
        """Float32 [B,N,D] of images [B,H,W,C] in [0, 1], N patches on the student's grid."""
        raise NotImplementedError
