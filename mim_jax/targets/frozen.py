"""A frozen network: its weights and its own input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import ViT
from mim_jax.ranges import AnyNumber, Positive, Side
from mim_jax.targets.base import Target
from mim_jax.targets.features import network_input, resample_tokens
from mim_jax.weights import fitting
from mim_jax.weights.naming import IMAGENET


@dataclasses.dataclass(frozen=True)
class FrozenNetwork(Target):
    """What teachers and tokenizers share: normalisation and size of the input belong to them.

    weights: where the parameters are read from.
    model: the network.
    mean, std: of its images in [0, 1].
    input_size: (height, width) that it sees; None: the student's.
    """

    weights: str | None = None
    model: ViT = ViT()
    mean: tuple[AnyNumber, ...] = IMAGENET[0]
    std: tuple[Positive, ...] = IMAGENET[1]
    input_size: tuple[Side, ...] | None = None

    def __post_init__(self):
        if self.input_size is not None and len(self.input_size) != 2:
            raise ValueError(
                f'input_size = {tuple(self.input_size)} must be (height, width), or None'
            )

    def check(self, encoder, inputs):
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if len(values) != inputs.channels:
                raise UserError(
                    f'config.objective.target.{name} = {tuple(values)}: it needs one number for '
                    f'each of the {inputs.channels} channels of the images.'
                )

    def input(self, images: jax.Array) -> jax.Array:
        """Images [B,H,W,C] in [0, 1] as the network sees them: its own size and normalisation."""
        return network_input(images, size=self.input_size, mean=self.mean, std=self.std)

    def on_students_grid(self, tokens: jax.Array, images: jax.Array) -> jax.Array:
        """Tokens [B,n,D] that the network has of `images` [B,H,W,C], at the student's patches."""
        size = self.input_size or images.shape[1:3]
        return resample_tokens(
            tokens,
            patch_grid(size, self.model.patch_size),
            patch_grid(images.shape[1:3], self.encoder.patch_size),
        )

    def image_struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one image that the network sees, [1,H,W,C]."""
        size = self.input_size or self.inputs.image_size
        return jax.ShapeDtypeStruct((1, *size, self.inputs.channels), jnp.float32)

    def fitted(self, params: dict[str, Any], *, what: str) -> dict[str, Any]:
        """The parameters; raises UserError, naming `what` they are, where they do not fit."""
        expected = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        fitting.check_params(params, fitting.open_tables(expected, self.model), what=what)
        return params
