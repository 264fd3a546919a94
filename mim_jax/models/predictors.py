"""Predictors: from tokens of the visible patches to those at chosen other places."""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.blocks import REMAT_POLICIES, CrossBlock, blocks_of
from mim_jax.models.initializers import INITS, normal_token
from mim_jax.models.positions import sincos_table
from mim_jax.models.tokenwise import Linear, layer_norm
from mim_jax.ranges import Depth, Positive, Width

MASK_TOKENS = {'normal': normal_token, 'zeros': nn.initializers.zeros}


@dataclasses.dataclass(frozen=True)
class Predictor:
    """I-JEPA's predictor (Assran et al., CVPR 2023): a narrow ViT on visible and mask tokens.

    mask_token_initialization: 'normal' of deviation 0.02, or 'zeros' (V-JEPA).

    Parameters: embed, mask_token [groups,width], blocks (as in the encoder), norm, predict.
    """

    width: Width = 384
    depth: Depth = 6
    heads: Width = 12
    mlp_ratio: Positive = 4.0
    norm_eps: Positive = 1e-6
    initialization: Literal[INITS] = 'normal'
    mask_token_initialization: Literal['normal', 'zeros'] = 'normal'
    scan: bool = True
    remat: Literal[('none', *REMAT_POLICIES)] = 'none'
    dtype: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self):
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f'width {self.width} is not divisible by heads {self.heads} and by 4 (sine-cosine)'
            )

    def init(self, key, tokens, *, grid, features, groups=1):
        """Variables {'params': ...} for tokens of the shape [B,K,D] of `tokens` (values unused).

        groups: so many kinds of masks have a mask token of their own.
        """
        return _init(self, key, tokens.shape[-1], tuple(grid), features, groups)

    def apply(self, variables, tokens, *, visible, targets, counted=None, grid, group=0):
        """Predictions float32 [B,T,P,features] at the places `targets` [B,T,P], each of T blocks by
        itself, from tokens [B,K,D] at the places `visible` [B,K] of `grid` (h,w).

        counted: [P] bool, the places that may be attended to; None: all. group: number of the mask
        token.
        """
        params = variables['params']
        features, groups = params['predict']['bias'].shape[-1], params['mask_token'].shape[0]
        module = PredictorModule(self, tuple(grid), features, groups)
        return module.apply(variables, tokens, visible, targets, counted, group)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4, 5))
def _init(config, key, width, grid, features, groups):
    module = PredictorModule(config, grid, features, groups)
    visible, targets = (jnp.zeros(shape, jnp.int32) for shape in ((1, 1), (1, 1, 1)))
    return module.init(key, jnp.zeros((1, 1, width)), visible, targets, None, 0)


class PredictorModule(nn.Module):
    """The Linen module of `Predictor`; see there."""

    config: Predictor
    grid: tuple[int, int]
    features: int
    groups: int

    @nn.compact
    def __call__(self, tokens, visible, targets, counted, group):
        c = self.config
        linear = functools.partial(Linear, initialization=c.initialization, dtype=c.dtype)
        table = jnp.asarray(sincos_table(self.grid, c.width).reshape(-1, c.width), c.dtype)
        start = MASK_TOKENS[c.mask_token_initialization]
        mask_token = self.param('mask_token', start, (self.groups, c.width))[group]

        context = linear((c.width,), name='embed')(tokens) + table[visible]
        asked = mask_token.astype(c.dtype) + table[targets]
        batch, num_blocks, slots, _ = asked.shape
        shape = (batch, num_blocks, *context.shape[1:])
        x = jnp.concatenate([jnp.broadcast_to(context[:, None], shape), asked], axis=2)
        x = x.reshape(batch * num_blocks, -1, c.width)
        bias = None
        if counted is not None:
            # Nothing attends to what only fills the array.
            bias = jnp.where(jnp.pad(counted, (shape[2], 0), constant_values=True), 0.0, -jnp.inf)
            bias = bias[None, None, None]
        x, _ = blocks_of(c)(x, bias=bias)
        x = layer_norm(c.norm_eps, c.dtype, 'norm')(x[:, -slots:])
        x = linear((self.features,), name='predict')(x).astype(jnp.float32)
        return x.reshape(batch, num_blocks, slots, -1)


@dataclasses.dataclass(frozen=True)
class QueryDecoder(Predictor):
    """Latent MIM's decoder (Wei et al., ECCV 2024): queries at the hidden places attend to each
    other and to the visible tokens.

    cue: 'visible' starts every query as the mean of the visible tokens, each weighted by how near
      its position is to the query's (softmax of the tables' inner products over the root of the
      width); 'none' starts all of them at the mask token.

    Parameters: embed, mask_token, class_token, blocks (as in `CrossBlock`), norm, predict.
    """

    width: Width = 512
    depth: Depth = 3
    heads: Width = 16
    initialization: Literal[INITS] = 'mae'
    mask_token_initialization: Literal['normal', 'zeros'] = 'zeros'
    cue: Literal['visible', 'none'] = 'visible'

    def init(self, key, tokens, *, grid, features):
        return _init_queries(self, key, tokens.shape[-1], tuple(grid), features)

    def apply(self, variables, tokens, *, visible, hidden, grid, class_token):
        """Predictions float32 [B,H,features] at the places `hidden` [B,H] of `grid` (h,w), from the
        tokens [B,K,D] at `visible` [B,K] and the class token [B,D].
        """
        features = variables['params']['predict']['bias'].shape[-1]
        module = QueryModule(self, tuple(grid), features)
        return module.apply(variables, tokens, class_token, visible, hidden)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _init_queries(config, key, width, grid, features):
    places = jnp.zeros((1, 1), jnp.int32)
    tokens = jnp.zeros((1, 1, width))
    return QueryModule(config, grid, features).init(key, tokens, tokens[0], places, places)


class QueryModule(nn.Module):
    """The Linen module of `QueryDecoder`; see there."""

    config: QueryDecoder
    grid: tuple[int, int]
    features: int

    @nn.compact
    def __call__(self, tokens, class_token, visible, hidden):
        c = self.config
        linear = functools.partial(Linear, initialization=c.initialization, dtype=c.dtype)
        embed = linear((c.width,), name='embed')
        table = jnp.asarray(sincos_table(self.grid, c.width).reshape(-1, c.width))
        start = MASK_TOKENS[c.mask_token_initialization]
        mask_token = self.param('mask_token', start, (c.width,))
        own = self.param('class_token', normal_token, (c.width,))

        seen = embed(tokens)
        queries = jnp.broadcast_to(mask_token.astype(c.dtype), (*hidden.shape, c.width))
        if c.cue == 'visible':
            nearness = jnp.einsum('bhd,bkd->bhk', table[hidden], table[visible]) * c.width**-0.5
            queries += jnp.einsum('bhk,bkd->bhd', jax.nn.softmax(nearness).astype(c.dtype), seen)
        queries += table[hidden].astype(c.dtype)
        own = jnp.broadcast_to(own.astype(c.dtype), (hidden.shape[0], 1, c.width))
        memory = [embed(class_token)[:, None], seen + table[visible].astype(c.dtype)]
        x, _ = blocks_of(c, block=CrossBlock)(
            jnp.concatenate([own, queries], axis=1), memory=jnp.concatenate(memory, axis=1)
        )
        x = layer_norm(c.norm_eps, c.dtype, 'norm')(x[:, 1:])
        return linear((self.features,), name='predict')(x).astype(jnp.float32)
