"""What every part of a method knows of its data."""

import dataclasses

import jax

from mim_jax.data import fields as fields_lib
from mim_jax.data.augment import denormalize, normalize
from mim_jax.data.fields import Field


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Shape and normalisation of the student's images, and what comes with them.

    image_size: (height, width) in pixels; channels; mean and std per channel, for images in
    [0, 1]; fields: of the data source, see `mim_jax.data.Field`.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fields: tuple[Field, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """Of the field `label`; None where the data has not one class per image."""
        return fields_lib.num_classes(self.fields)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images [B,H,W,C] in [0, 1] as the student sees them, float32."""
        return normalize(images, mean=self.mean, std=self.std)

    def denormalize(self, images: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        return denormalize(images, mean=self.mean, std=self.std)
