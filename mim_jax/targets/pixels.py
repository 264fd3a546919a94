"""Pixels as targets: patches as they are, or each normalised by its own mean and deviation."""

import dataclasses

import jax.numpy as jnp

from mim_jax.models.patches import patchify, unpatchify

__all__ = ['Pixels', 'denormalize_patches', 'normalize_patches', 'patchify', 'unpatchify']

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
class Pixels:
    """The images' own patches: float32 [B,N,p*q*C], flattened as (row, column, channel)."""

    normalize: bool = True  # per patch (MAE's recommended form); False: the given images' values

    def __call__(self, images, *, patch_size):
        """Targets of images [B,H,W,C], normalised or not as the caller chooses."""
        patches = patchify(images.astype(jnp.float32), patch_size=patch_size)
        return normalize_patches(patches) if self.normalize else patches

    def to_images(self, prediction, *, images, patch_size):
        """Predictions [B,N,p*q*C] as images like `images` [B,H,W,C], for pictures."""
        (h, w), (p, q) = images.shape[1:3], patch_size
        if self.normalize:
            prediction = denormalize_patches(
                prediction, like=patchify(images, patch_size=patch_size)
            )
        return unpatchify(prediction, grid=(h // p, w // q), patch_size=patch_size)
