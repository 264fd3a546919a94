"""Pixels as targets: patches as they are, or each normalised by its own mean and deviation."""

import dataclasses

import jax.numpy as jnp

from mim_jax import panels
from mim_jax.models.patches import patch_grid, patchify, unpatchify
from mim_jax.targets.base import Target

VARIANCE_EPS = 1e-6


def normalize_patches(patches):
    """(x - mean) / sqrt(var + 1e-6) over the last axis of [...,P], float32.

    The variance is the unbiased one (divided by P - 1), as MAE's code has it.
    """
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + VARIANCE_EPS)


def denormalize_patches(values, *, like):
    """Undoes `normalize_patches`: values [...,P] with mean and deviation of the patches `like`."""
    like = like.astype(jnp.float32)
    mean = like.mean(axis=-1, keepdims=True)
    variance = like.var(axis=-1, keepdims=True, ddof=1)
    return values * jnp.sqrt(variance + VARIANCE_EPS) + mean


@dataclasses.dataclass(frozen=True)
class Pixels(Target):
    """The patches of the images as the student sees them, flattened as (row, column, channel).

    normalize: each patch by its own mean and deviation (MAE's recommended form); False leaves the
    student's normalisation (SimMIM).
    """

    normalize: bool = False

    def __call__(self, variables, images):
        patches = patchify(self.inputs.normalize(images), patch_size=self.encoder.patch_size)
        return normalize_patches(patches) if self.normalize else patches.astype(jnp.float32)

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
            prediction = denormalize_patches(prediction, like=truth)
        grid = patch_grid(images.shape[1:3], size)
        return self.inputs.denormalize(unpatchify(prediction, grid=grid, patch_size=size))
