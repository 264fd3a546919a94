"""What every part of a method knows of its images."""

import dataclasses

import jax

from mim_jax.data.augment import denormalize, normalize


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Shape and normalisation of the student's images.

    image_size: (height, width) in pixels; channels; mean and std per channel, for images in
    [0, 1]; num_classes: of the labels, None without labels.
    """

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int | None = None

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images [B,H,W,C] in [0, 1] as the student sees them, float32."""
        return normalize(images, mean=self.mean, std=self.std)

    def denormalize(self, images: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        return denormalize(images, mean=self.mean, std=self.std)
