"""What a context autoencoder has after its encoder (Chen et al., CAE, IJCV 2023)."""

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.models.attention import CrossAttention
from mim_jax.models.blocks import PreNormBlock, drop_path_factors, stacked_blocks
from mim_jax.models.initializers import TOKEN_INITS
from mim_jax.models.positions import sincos_table
from mim_jax.models.tokenwise import layer_norm
from mim_jax.models.vit import ViT


class RegressorBlock(PreNormBlock):
    """Cross-attention of hidden tokens to all tokens, and an MLP.

    Its context holds memory [B,K,D], the visible tokens, and positions of hidden and of visible
    tokens, `positions` [B,M,D] and `memory_positions` [B,K,D], which queries and keys see and
    values do not. The carry is the hidden tokens x [B,M,D], which are keys and values too. After
    the attention the stream itself is normalised, not only what the MLP is given.

    Source: the latent regressor of CAE's released code.
    """

    @nn.compact
    def __call__(self, x, index, keep, context):
        attention = self.attention_module(CrossAttention, index, 'cross_attention')
        positions = context['positions']
        tokens = jnp.concatenate([context['memory'], x], axis=1)
        places = jnp.concatenate([context['memory_positions'], positions], axis=1)
        y = attention(
            self.norm(x + positions, 'norm_query'),
            self.norm(tokens + places, 'norm_key'),
            values=self.norm(tokens, 'norm_value'),
        )
        x = self.norm(self.residual(x, y, 1, keep), 'norm')
        return self.residual(x, self.mlp_module(x.shape[-1], index)(x), 2, keep), {}


class LatentRegressor(nn.Module):
    """Tokens [B,M,D] at hidden patches from those of the visible ones.

    Queries start as one mask token. The blocks have the encoder's options and drop path.
    Parameters: mask_token, blocks, and with `final_norm` norm.

    final_norm: a LayerNorm at the end.
    """

    encoder: ViT
    grid: tuple[int, int]
    depth: int = 4
    final_norm: bool = True

    @nn.compact
    def __call__(self, tokens, *, visible_ids, hidden_ids, drop_path_keys=None):
        """tokens [B,K,D] of the places `visible_ids` [B,K] int32; `hidden_ids` [B,M] int32;
        drop_path_keys: typed keys [B] or None, see `ViT.apply`.
        """
        c = self.encoder
        mask_token = self.param('mask_token', TOKEN_INITS[c.token_initialization], (c.width,))
        keep = None
        if drop_path_keys is not None and c.drop_path > 0:
            keep = drop_path_factors(drop_path_keys, rate=c.drop_path, depth=self.depth)
        blocks = stacked_blocks(self.depth, block=RegressorBlock, **c.block_options)
        x, _ = blocks(
            jnp.broadcast_to(mask_token.astype(c.dtype), (*hidden_ids.shape, c.width)),
            keep=keep,
            memory=tokens,
            memory_positions=positions(c, self.grid, visible_ids),
            positions=positions(c, self.grid, hidden_ids),
        )
        return layer_norm(c.norm_eps, c.dtype, 'norm')(x) if self.final_norm else x


class PlacedBlocks(nn.Module):
    """Blocks of self-attention, with the encoder's options but no drop path, among tokens [B,M,D]
    of the places `ids` [B,M], and a LayerNorm. Parameters: blocks, norm.
    """

    encoder: ViT
    grid: tuple[int, int]
    depth: int

    @nn.compact
    def __call__(self, tokens, ids):
        c = self.encoder
        x = tokens + positions(c, self.grid, ids)
        x, _ = stacked_blocks(self.depth, **c.block_options)(x)
        return layer_norm(c.norm_eps, c.dtype, 'norm')(x)


def positions(encoder, grid, ids):
    """Sine-cosine positions [B,M,D] of the places `ids` [B,M] on `grid`, in the encoder's dtype."""
    table = sincos_table(grid, encoder.width).reshape(-1, encoder.width)
    return jnp.asarray(table, encoder.dtype)[ids]
