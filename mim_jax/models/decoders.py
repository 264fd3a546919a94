"""Decoders: blocks between an encoder's tokens and what is predicted from them."""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.blocks import (
    REMAT_POLICIES,
    Block,
    CrossBlock,
    blocks_of,
    drop_path_factors,
    stacked_blocks,
)
from mim_jax.models.initializers import INITS, normal_token
from mim_jax.models.positions import RelativePosition, sincos_table
from mim_jax.models.tokenwise import Linear, layer_norm
from mim_jax.models.vit import ViT
from mim_jax.ranges import Positive, Range, Width

# Parts of a decoder of patches that come before its blocks: decoders that are fed the same tokens
# can share one's.
INPUT = ('embed', 'mask_token')


@dataclasses.dataclass(frozen=True)
class MAEDecoder:
    """MAE's decoder (He et al., CVPR 2022): linear, mask tokens, sine-cosine table, blocks, linear.

    Parameters: embed, mask_token, blocks (as in the encoder), norm, predict.
    """

    width: Width = 512
    depth: Annotated[int, Range(0, 1000)] = 8
    heads: Width = 16
    mlp_ratio: Positive = 4.0
    norm_eps: Positive = 1e-6
    initialization: Literal[INITS] = 'mae'
    scan: bool = True
    remat: Literal[('none', *REMAT_POLICIES)] = 'none'
    dtype: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self):
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f'width {self.width} is not divisible by heads {self.heads} and by 4 (sine-cosine)'
            )

    @property
    def module(self) -> nn.Module:
        """The Linen module with these fields."""
        return Decoder(self)

    def init(self, key, tokens, *, grid, features):
        """Variables {'params': ...} for tokens of the shape [B,K,D] of `tokens` (values unused)."""
        return _init(self.module, key, tokens.shape[-1], tuple(grid), features)

    def apply(self, variables, tokens, *, visible_ids, grid, features, class_token=None):
        """Predicts every patch, float32 [B,N,features], from tokens [B,K,D] of the visible ones.

        visible_ids [B,K] int32: the tokens' places on `grid` (h,w); None: all are there, in order,
        and no mask token is needed. class_token [B,D] takes part in attention and is dropped at the
        end.
        """
        return self.module.apply(
            variables,
            tokens,
            visible_ids=visible_ids,
            grid=tuple(grid),
            features=features,
            class_token=class_token,
        )


@dataclasses.dataclass(frozen=True)
class CrossDecoder(MAEDecoder):
    """CroCo's decoder (Weinzaepfel et al., NeurIPS 2022): MAE's, whose blocks also attend to a
    second image.

    The tokens of both images go through the same `embed` and get the same positions. Parameters as
    `MAEDecoder`, those of the blocks as in `CrossBlock`.
    """

    def init(self, key, tokens, *, grid, features):
        return _init(self.module, key, tokens.shape[-1], tuple(grid), features, cross=True)

    def apply(
        self,
        variables,
        tokens,
        *,
        visible_ids,
        grid,
        features,
        memory,
        memory_grid=None,
        class_token=None,
    ):
        """Predicts every patch of the first image as `MAEDecoder.apply` does.

        memory [B,M,D]: all patch tokens of the second image, on `memory_grid` (h,w); None: `grid`.
        """
        return self.module.apply(
            variables,
            tokens,
            visible_ids=visible_ids,
            grid=tuple(grid),
            features=features,
            class_token=class_token,
            memory=memory,
            memory_grid=tuple(memory_grid or grid),
        )


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4), static_argnames='cross')
def _init(module, key, width, grid, features, *, cross=False):
    memory = {'memory': jnp.zeros((1, 1, width)), 'memory_grid': (1, 1)} if cross else {}
    ids = jnp.zeros((1, 1), jnp.int32)
    tokens = jnp.zeros((1, 1, width))
    return module.init(key, tokens, visible_ids=ids, grid=grid, features=features, **memory)


def unshuffle(tokens, *, visible_ids, fill, num_tokens):
    """Tokens [B,K,D] at their places `visible_ids` [B,K] of `num_tokens`; elsewhere `fill` [D]."""
    base = jnp.broadcast_to(fill.astype(tokens.dtype), (num_tokens, tokens.shape[-1]))
    return jax.vmap(lambda ids, x: base.at[ids].set(x, unique_indices=True))(visible_ids, tokens)


class Decoder(nn.Module):
    """The Linen module of `MAEDecoder` and, with a memory, of `CrossDecoder`; see there."""

    config: MAEDecoder

    @nn.compact
    def __call__(
        self,
        tokens,
        *,
        visible_ids,
        grid,
        features,
        class_token=None,
        memory=None,
        memory_grid=None,
    ):
        c = self.config
        linear = functools.partial(Linear, initialization=c.initialization, dtype=c.dtype)
        embed = linear((c.width,), name='embed')

        def positions(grid):
            return jnp.asarray(sincos_table(grid, c.width).reshape(-1, c.width), c.dtype)

        x = embed(tokens)
        if visible_ids is not None:
            mask_token = self.param('mask_token', normal_token, (c.width,))
            count = grid[0] * grid[1]
            x = unshuffle(x, visible_ids=visible_ids, fill=mask_token, num_tokens=count)
        x += positions(grid)
        if class_token is not None:
            x = jnp.concatenate([embed(class_token)[:, None], x], axis=1)
        kind, context = Block, {}
        if memory is not None:
            kind, context = CrossBlock, {'memory': embed(memory) + positions(memory_grid)}
        x, _ = blocks_of(c, block=kind)(x, **context)
        if class_token is not None:
            x = x[:, 1:]
        x = layer_norm(c.norm_eps, c.dtype, 'norm')(x)
        return linear((features,), name='predict')(x).astype(jnp.float32)


class PatchAggregation(nn.Module):
    """Further blocks like an encoder's on tokens [B,1+N,D], class token first; no norm at the end.

    BEiT v2 feeds them the last class token and patch tokens of an earlier block, `first`, whose
    numbering they continue. Parameters: blocks.
    """

    encoder: ViT
    grid: tuple[int, int]
    first: int
    depth: int

    @nn.compact
    def __call__(self, tokens, *, drop_path_keys=None, shared=None):
        """drop_path_keys: typed keys [B] or None, see `ViT.apply`. shared: parameters of the
        encoder's relative position table that all its blocks use, or None.
        """
        c = self.encoder
        keep = None
        if drop_path_keys is not None and c.drop_path > 0:
            keep = drop_path_factors(drop_path_keys, rate=c.drop_path, depth=c.depth)
            # With the rates of the encoder's blocks that follow.
            keep = keep[jnp.minimum(self.first + jnp.arange(self.depth), c.depth - 1)]
        relative = functools.partial(
            RelativePosition, c.heads, self.grid, True, stored=c.grid and tuple(c.grid)
        )
        bias = None
        if shared is not None:
            bias = relative(parent=None).apply({'params': shared})
        own = c.relative_position in ('per_block', 'both')
        blocks = stacked_blocks(
            self.depth, first=self.first, relative=relative if own else None, **c.block_options
        )
        return blocks(tokens, keep=keep, bias=bias)[0]
