"""What a network says of images: its input, its patch tokens, tokens on another grid."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mim_jax.data.augment import normalize
from mim_jax.models.patches import patch_grid
from mim_jax.morphing import merges_per_step
from mim_jax.morphing.layerwise import TokenMerging


def network_tokens(params, images, *, model, layer=None, num_merged=None):
    """Patch tokens float32 [B,N,D] of `model` with `params`; deterministic, without gradient.

    images: [B,H,W,C], normalised. layer: tokens after that many blocks, before the final norm (the
    later blocks are not computed); None: after the last block, and the final norm where the model
    has one. params/projection/kernel [D,P], where present, is applied last (to [B,N,P]).
    An average of the student's parameters makes the same function an EMA teacher.
    num_merged: int32 scalar, may be traced: so many tokens are merged, spread over the blocks
    (`morphing.layerwise`); then returns (tokens, groups [B,N] int32), tokens of a group equal.
    """
    params = dict(params)
    projection = params.pop('projection', None)
    if layer is not None:
        params['blocks'] = jax.tree.map(lambda stacked: stacked[:layer], params['blocks'])
        model = dataclasses.replace(model, depth=layer, final_norm=False, drop_path=0.0)
    hook = None
    if num_merged is not None:
        num_tokens = math.prod(patch_grid(images.shape[1:3], model.patch_size))
        per_block = merges_per_step(num_merged, model.depth, num_tokens=num_tokens)
        hook = TokenMerging(per_block, model.class_token, model.num_registers)
    encoded = model.apply({'params': params}, images, hook=hook)
    tokens = encoded.tokens
    if projection is not None:
        tokens = tokens @ projection['kernel'].astype(tokens.dtype)
    tokens = jax.lax.stop_gradient(tokens.astype(jnp.float32))
    return tokens if hook is None else (tokens, hook.groups(encoded.hook_state))


def network_input(images, *, size, mean, std):
    """Images [B,H,W,C] in [0, 1] as a network sees them: resized (bicubic) to `size` (height,
    width) where that is not None, then normalised; float32.
    """
    if size is not None and tuple(size) != images.shape[1:3]:
        shape = (images.shape[0], *size, images.shape[3])
        images = jnp.clip(jax.image.resize(images, shape, 'cubic', antialias=True), 0.0, 1.0)
    return normalize(images, mean=mean, std=std)


def resample_tokens(tokens, grid_from, grid_to):
    """Tokens [B,h*w,D] of one grid (h,w) on another, bilinear (averaging where it gets coarser)."""
    if tuple(grid_from) == tuple(grid_to):
        return tokens
    batch, _, width = tokens.shape
    field = tokens.reshape(batch, *grid_from, width)
    field = jax.image.resize(field, (batch, *grid_to, width), 'linear', antialias=True)
    return field.reshape(batch, -1, width)
