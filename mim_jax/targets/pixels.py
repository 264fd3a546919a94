"""Pixels as targets: patches as they are, or each normalised by its own mean and deviation."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from mim_jax import panels
from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid, patchify, unpatchify
from mim_jax.targets.base import Target

VARIANCE_EPS = 1e-6


def normalize_patches(patches, *, channels=1):
    """(x - mean) / sqrt(var + 1e-6) over the last axis of [...,P], float32.

    The variance is the unbiased one (divided by P - 1), as MAE's code has it. channels: so many
    numbers lie beside each other for every pixel, and each is normalised by itself over the P /
    channels pixels.
    """
    mean, deviation = _statistics(patches, channels)
    return (patches - mean) / deviation


def denormalize_patches(values, *, like, channels=1):
    """Undoes `normalize_patches`: values [...,P] with mean and deviation of the patches `like`."""
    mean, deviation = _statistics(like, channels)
    return values * deviation + mean


def _statistics(patches, channels):
    """Mean and deviation that belong to each of the numbers [...,P], two float32 [...,P]."""
    pixels = patches.astype(jnp.float32).reshape(*patches.shape[:-1], -1, channels)
    deviation = jnp.sqrt(pixels.var(axis=-2, ddof=1) + VARIANCE_EPS)
    return [jnp.tile(x, pixels.shape[-2]) for x in (pixels.mean(axis=-2), deviation)]


@dataclasses.dataclass(frozen=True)
class Pixels(Target):
    """The patches of the images as the student sees them, flattened as (row, column, channel).

    normalize: each patch by its own mean and deviation (MAE's recommended form); False leaves the
    student's normalisation (SimMIM).
    normalize_over: all numbers of a 'patch', or those of each 'channel' of it by themselves.
    """

    normalize: bool = False
    normalize_over: Literal['patch', 'channel'] = 'patch'

    def check(self, encoder, inputs):
        if self.normalize and self.normalize_over == 'channel' and encoder.patch_size == (1, 1):
            raise UserError(
                'config.objective.target.normalize_over = channel, but of patches of a single '
                "pixel no channel has a deviation; set it to 'patch', or model.patch_size larger."
            )

    def __call__(self, variables, images):
        patches = patchify(self.inputs.normalize(images), patch_size=self.encoder.patch_size)
        if not self.normalize:
            return patches.astype(jnp.float32)
        return normalize_patches(patches, channels=self._channels)

    def panels(self, prediction, images):
        """What there is to see of predictions [B,N,p*q*C]: panels, the last one as an image.

        With `normalize` the prediction itself comes first (grey where it is 0, each deviation a
        fifth of the range), because its image borrows mean and deviation from the truth and looks
        right even where nothing was learned.
        """
        image = jnp.clip(self.to_images(prediction, images), 0, 1)
        if not self.normalize:
            return [panels.Image(image, title='reconstruction')]
        grid = patch_grid(images.shape[1:3], self.encoder.patch_size)
        raw = unpatchify(prediction, grid=grid, patch_size=self.encoder.patch_size)
        return [
            panels.Image(jnp.clip(0.5 + 0.2 * raw, 0, 1), title='prediction (normalised)'),
            panels.Image(image, title='with true mean and deviation of each patch'),
        ]

    def to_images(self, prediction, images):
        """Predictions [B,N,p*q*C] as images in about [0, 1].

        With `normalize` the mean and deviation that the prediction lacks are those of the true
        patches of `images` [B,H,W,C] in [0, 1].
        """
        size = self.encoder.patch_size
        if self.normalize:
            truth = patchify(self.inputs.normalize(images), patch_size=size)
            prediction = denormalize_patches(prediction, like=truth, channels=self._channels)
        grid = patch_grid(images.shape[1:3], size)
        return self.inputs.denormalize(unpatchify(prediction, grid=grid, patch_size=size))

    @property
    def _channels(self):
        """How many numbers of a pixel are normalised apart."""
        return self.inputs.channels if self.normalize_over == 'channel' else 1
