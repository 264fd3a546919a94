"""A decoder of some of an image's patches: those that are seen, and some that are asked for."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.models.blocks import blocks_of
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.initializers import normal_token
from mim_jax.models.positions import sincos_table
from mim_jax.models.tokenwise import Linear, layer_norm


class Completion(nn.Module):
    """Tokens of seen patches, normed, mask tokens at the places asked for, and a summary of the
    image, all through one linear layer and blocks; no other patch takes part.

    config: its width, depth, heads and what its blocks are. Parameters: norm_in, embed, mask_token,
    blocks, norm.

    Source: the dense branch of MOCA (Gidaris et al., TMLR 2024), the released code.
    """

    config: MAEDecoder

    @nn.compact
    def __call__(self, tokens, summary, *, seen, asked, grid):
        """tokens [B,K,D] at the places `seen` [B,K] of `grid` (h,w), summary [B,D], `asked` [B,A]
        to float32 [B,K+A,width], in the order of seen and asked.
        """
        c = self.config
        tokens = layer_norm(c.norm_eps, c.dtype, 'norm_in')(tokens)
        tokens = jnp.concatenate([summary[:, None].astype(tokens.dtype), tokens], axis=1)
        linear = functools.partial(Linear, initialization=c.initialization, dtype=c.dtype)
        x = linear((c.width,), name='embed')(tokens)
        mask_token = self.param('mask_token', normal_token, (c.width,)).astype(x.dtype)
        blank = jnp.broadcast_to(mask_token, (*asked.shape, c.width))
        table = jnp.asarray(sincos_table(grid, c.width).reshape(-1, c.width), x.dtype)
        places = jnp.concatenate([seen, asked], axis=1)
        patches = jnp.concatenate([x[:, 1:], blank], axis=1) + table[places]
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        x, _ = blocks_of(c)(x)
        return layer_norm(c.norm_eps, c.dtype, 'norm')(x)[:, 1:].astype(jnp.float32)
