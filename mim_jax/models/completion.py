"""A decoder of some of an image's patches: those that are seen, and some that are asked for."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.blocks import blocks_of
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.initializers import normal_token
from mim_jax.models.positions import sincos_table
from mim_jax.models.tokenwise import Linear, layer_norm


@dataclasses.dataclass(frozen=True)
class CompletionDecoder(MAEDecoder):
    """Tokens of seen patches, normed, mask tokens at the places asked for, and a summary of the
    image, all through one linear layer and blocks; no other patch takes part.

    Parameters: norm_in, embed, mask_token, blocks, norm.

    Source: the dense branch of MOCA (Gidaris et al., TMLR 2024), the released code.
    """

    def init(self, key, tokens, *, grid):
        return _init(self, key, tokens.shape[-1], tuple(grid))

    def apply(self, variables, tokens, summary, *, seen, asked, grid):
        """tokens [B,K,D] at the places `seen` [B,K] of `grid` (h,w), summary [B,D], `asked` [B,A]
        to float32 [B,K+A,width], in the order of seen and asked.
        """
        return Completion(self, tuple(grid)).apply(variables, tokens, summary, seen, asked)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _init(config, key, width, grid):
    tokens, places = jnp.zeros((1, 1, width)), jnp.zeros((1, 1), jnp.int32)
    return Completion(config, grid).init(key, tokens, tokens[0], places, places)


class Completion(nn.Module):
    """The Linen module of `CompletionDecoder`; see there."""

    config: CompletionDecoder
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, tokens, summary, seen, asked):
        c = self.config
        tokens = layer_norm(c.norm_eps, c.dtype, 'norm_in')(tokens)
        tokens = jnp.concatenate([summary[:, None].astype(tokens.dtype), tokens], axis=1)
        linear = functools.partial(Linear, initialization=c.initialization, dtype=c.dtype)
        x = linear((c.width,), name='embed')(tokens)
        mask_token = self.param('mask_token', normal_token, (c.width,)).astype(x.dtype)
        blank = jnp.broadcast_to(mask_token, (*asked.shape, c.width))
        table = jnp.asarray(sincos_table(self.grid, c.width).reshape(-1, c.width), x.dtype)
        places = jnp.concatenate([seen, asked], axis=1)
        patches = jnp.concatenate([x[:, 1:], blank], axis=1) + table[places]
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        x, _ = blocks_of(c)(x)
        return layer_norm(c.norm_eps, c.dtype, 'norm')(x)[:, 1:].astype(jnp.float32)
