"""Aggregation of tokens by class attention: of neighbours, or of all there are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.losses import unit
from mim_jax.models.attention import CrossAttention
from mim_jax.models.blocks import PreNormBlock
from mim_jax.models.tokenwise import layer_norm
from mim_jax.sharding import over_batch


class ClassAttentionBlock(PreNormBlock):
    """Tokens x [B,S,D] plus what one query [B,1,D] gathers from itself and a memory [B,M,D], and an
    MLP. The norm before attention is the same for query and memory.

    Source: CaiT (Touvron et al., ICCV 2021), in the form of DMT-JEPA's code, without layer scale.
    """

    @nn.compact
    def __call__(self, x, query, memory):
        normed = over_batch(self.norm(jnp.concatenate([query, memory], axis=1), 'norm1'))
        attention = self.attention_module(CrossAttention, 0, 'attention')
        x = self.residual(x, attention(over_batch(normed[:, :1]), normed), 1, None)
        return self.residual(x, self.mlp_module(x.shape[-1], 0)(self.norm(x, 'norm2')), 2, None)


class Aggregation(nn.Module):
    """Two blocks of class attention and a norm, used in two ways by the same parameters.

    Parameters: block1, block2 (norm1, attention, norm2, mlp), norm.

    Source: DMT-JEPA, the local aggregation head of the released code.
    """

    heads: int
    norm_eps: float = 1e-6
    initialization: str = 'normal'
    dtype: str = 'float32'

    def setup(self):
        given = {'initialization': self.initialization, 'dtype': self.dtype}
        self.block1 = ClassAttentionBlock(self.heads, norm_eps=self.norm_eps, **given)
        self.block2 = ClassAttentionBlock(self.heads, norm_eps=self.norm_eps, **given)
        self.norm = layer_norm(self.norm_eps, self.dtype, None)

    def __call__(self, tokens):
        """Tokens [B,K,D], to each of which is added what their mean gathers from all of them."""
        for block in (self.block1, self.block2):
            tokens = block(tokens, tokens.mean(axis=1, keepdims=True), tokens)
        return self.norm(tokens)

    def around(self, tokens, chosen):
        """[B,N,D]: for every one of the tokens [B,N,D] what the mean of them all gathers from those
        at its places `chosen` [B,N,k] int32.
        """
        batch, count, width = tokens.shape
        memory = jnp.take_along_axis(tokens, chosen.reshape(batch, -1, 1), axis=1)
        memory = memory.reshape(batch * count, -1, width)
        query = jnp.broadcast_to(tokens.mean(axis=1, keepdims=True), tokens.shape)
        query = query.reshape(batch * count, 1, width)
        for block in (self.block1, self.block2):
            query = block(query, query, memory)
        return self.norm(query).reshape(tokens.shape)


def window_places(grid, window):
    """Places int [N, window^2 - 1] of the other patches in the window (odd) around each patch of a
    grid (h, w), which goes on at the opposite edge.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    reach = range(-(window // 2), window // 2 + 1)
    steps = [(down, across) for down in reach for across in reach if down or across]
    return np.stack(
        [
            (rows + down) % grid[0] * grid[1] + (columns + across) % grid[1]
            for down, across in steps
        ],
        axis=-1,
    )


def alike_neighbours(tokens, *, grid, window, count):
    """Places [B,N,count] int32 of the `count` tokens of each window around tokens [B,N,D] that are
    most like the one in its middle, by cosine.
    """
    places = jnp.asarray(window_places(grid, window), jnp.int32)
    units = unit(tokens)
    cosines = jnp.einsum(
        'bnd,bnkd->bnk', units, units[:, places], precision=jax.lax.Precision.HIGHEST
    )
    # The first of equals, as by top_k, which not every compiler splits over the batch.
    chosen = jnp.argsort(-cosines, axis=-1)[..., :count]
    return jnp.take_along_axis(jnp.broadcast_to(places, cosines.shape), chosen, axis=-1)
