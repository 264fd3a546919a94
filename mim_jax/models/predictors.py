"""Predictors: from tokens of the visible patches to those at chosen other places."""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.blocks import REMAT_POLICIES, stacked_blocks
from mim_jax.models.initializers import INITS, normal_token
from mim_jax.models.positions import sincos_table
from mim_jax.models.tokenwise import Linear, layer_norm
from mim_jax.ranges import Depth, Positive, Width


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
        start = {'normal': normal_token, 'zeros': nn.initializers.zeros}
        start = start[c.mask_token_initialization]
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
        x, _ = stacked_blocks(
            c.depth,
            scan=c.scan,
            remat=c.remat,
            heads=c.heads,
            mlp_ratio=c.mlp_ratio,
            norm_eps=c.norm_eps,
            initialization=c.initialization,
            dtype=c.dtype,
        )(x, bias=bias)
        x = layer_norm(c.norm_eps, c.dtype, 'norm')(x[:, -slots:])
        x = linear((self.features,), name='predict')(x).astype(jnp.float32)
        return x.reshape(batch, num_blocks, slots, -1)
