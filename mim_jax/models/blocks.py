"""Pre-norm Transformer blocks, stacked on a leading depth axis."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.attention import Attention, CrossAttention, attention_weights
from mim_jax.models.tokenwise import MLP, layer_norm
from mim_jax.sharding import over_batch

REMAT_POLICIES = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class PreNormBlock(nn.Module):
    """Fields and parts of blocks whose branches are x + keep * scale * branch(norm(x)).

    A kind of block subclasses it, names its branches from 1, and is called as `stacked_blocks`
    calls it.
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    qkv_bias: str = 'all'
    activation: str = 'gelu'
    norm_eps: float = 1e-6
    initialization: str = 'mae'
    dtype: str = 'float32'
    attention_kernel: str = 'xla'

    def out_scale(self, index):
        """Factor of the kernels that write to the residual stream, as they are initialised.

        'beit' divides them by sqrt(2 (index + 1)), `index` the block's place from 0.
        """
        return jax.lax.rsqrt(2.0 * (index + 1)) if self.initialization == 'beit' else 1.0

    def attention_module(self, kind, index, name):
        """The module Attention or CrossAttention with this block's fields."""
        return kind(
            self.heads,
            self.qkv_bias,
            self.initialization,
            self.out_scale(index),
            self.dtype,
            self.attention_kernel,
            name=name,
        )

    def mlp_module(self, width, index):
        """The module `mlp` for tokens of `width`."""
        hidden = int(width * self.mlp_ratio)
        scale = self.out_scale(index)
        return MLP(hidden, self.activation, self.initialization, scale, self.dtype, name='mlp')

    def norm(self, x, name, *, affine=True):
        return layer_norm(self.norm_eps, self.dtype, name, affine=affine)(x)

    def residual(self, x, y, branch, keep):
        """x plus what branch number `branch` (from 1) gives, after layer scale and drop path."""
        if self.layer_scale is not None:
            initial = nn.initializers.constant(self.layer_scale)
            scale = self.param(f'layer_scale{branch}', initial, x.shape[-1:])
            y *= scale.astype(self.dtype)
        if keep is not None:
            y *= keep[branch - 1][:, None, None].astype(self.dtype)
        return over_batch(x + y)


class Block(PreNormBlock):
    """Self-attention and MLP.

    Its context may hold
      bias: [1|B,heads,S,S], added to the logits;
      attention_keys: typed keys [B] for `attention_dropout`; without them there is none;
      visible_ids: [B,K] int32, for `relative`, which constructs the block's own
        RelativePosition, whose bias is added too;
      condition: [B,condition_width], needed with `condition_width`: adaptive layer norm as in DiT
        (adaLN-Zero), that is norms without parameters of their own, and shift, scale and gate of
        both branches from one linear layer, zero at first, on SiLU(condition);
      hook: a `models.hooks.Hook`. The carry is then (x, its state), otherwise x.

    `taps` names what is returned beside the carry, any of: 'layers', x after the block;
    'attention', float32 [B,heads,S], the weights of the first token; 'queries_keys', those of all
    tokens, each [B,S,heads,head width].

    Source of adaptive layer norm: DiT (Peebles and Xie, ICCV 2023).
    """

    condition_width: int | None = None
    relative: Callable | None = None
    attention_dropout: float = 0.0
    taps: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, carry, index, keep, context):
        hook, bias = context.get('hook'), context.get('bias')
        x, state = (carry, None) if hook is None else carry
        width = x.shape[-1]
        if self.relative is not None:
            bias = add(bias, self.relative(name='relative_position')(context.get('visible_ids')))
        if hook is not None:
            bias = add(bias, hook.bias(state))
        adapted = None, None
        if self.condition_width is not None:
            adapted = self.adaptation(context['condition'], width)

        y = self.adaptive_norm(x, 'norm1', adapted[0])
        factors = None
        if context.get('attention_keys') is not None and self.attention_dropout > 0:
            shape = (self.heads, y.shape[1], y.shape[1])
            factors = attention_factors(
                context['attention_keys'], index, rate=self.attention_dropout, shape=shape
            )
        attention = self.attention_module(Attention, index, 'attention')
        y, (queries, keys) = attention(y, bias, factors)
        x = self.residual(x, gated(y, adapted[0]), 1, keep)
        if hook is not None:
            x, state = hook.between(x, keys, state, index)
        y = self.mlp_module(width, index)(self.adaptive_norm(x, 'norm2', adapted[1]))
        x = self.residual(x, gated(y, adapted[1]), 2, keep)

        tapped = {}
        if 'layers' in self.taps:
            tapped['layers'] = x
        if 'attention' in self.taps:
            first = None if bias is None else bias[:, :, :1]
            tapped['attention'] = attention_weights(queries[:, :1], keys, bias=first)[:, :, 0]
        if 'queries_keys' in self.taps:
            tapped['queries_keys'] = queries, keys
        return x if hook is None else (x, state), tapped

    def adaptation(self, condition, width):
        """(shift, scale, gate), each [B,1,D], of both branches."""
        zeros = nn.initializers.zeros
        shape = (2, 3, width)
        linear = nn.DenseGeneral(shape, kernel_init=zeros, dtype=self.dtype, name='modulation')
        adapted = linear(jax.nn.silu(condition))[..., None, :]
        return [[adapted[:, branch, part] for part in range(3)] for branch in range(2)]

    def adaptive_norm(self, x, name, adapted):
        if adapted is None:
            return self.norm(x, name)
        shift, scale, _ = adapted
        return self.norm(x, name, affine=False) * (1 + scale) + shift


class CrossBlock(PreNormBlock):
    """Self-attention, cross-attention to a LayerNorm of `memory`, MLP (CroCo's decoder block).

    Its context holds memory [B,M,D'], and may hold bias [1|B,heads,S,S] for the self-attention.
    `keep` is [3,B] or None. The carry is x [B,S,D]; nothing is returned beside it.

    Source: CroCo (Weinzaepfel et al., NeurIPS 2022).
    """

    @nn.compact
    def __call__(self, x, index, keep, context):
        attention = self.attention_module(Attention, index, 'attention')
        cross_attention = self.attention_module(CrossAttention, index, 'cross_attention')
        y, _ = attention(self.norm(x, 'norm1'), context.get('bias'))
        x = self.residual(x, y, 1, keep)
        memory = self.norm(context['memory'], 'norm_memory')
        y = cross_attention(self.norm(x, 'norm2'), memory)
        x = self.residual(x, y, 2, keep)
        y = self.mlp_module(x.shape[-1], index)(self.norm(x, 'norm3'))
        return self.residual(x, y, 3, keep), {}


def add(a, b):
    """a + b, where None is nothing."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def gated(y, adapted):
    return y if adapted is None else y * adapted[2]


def stacked_blocks(
    depth, *, block=Block, first=0, scan=True, remat='none', name='blocks', **fields
):
    """`depth` blocks of one kind whose parameters lie on a leading axis; `fields` are the block's.

    The module maps (carry, keep [depth,branches,B] or None, **context) to (carry, tapped). A block
    is called with the carry, its place `first`, `first` + 1, … (int32, traced), its own `keep`,
    drop-path factors [branches,B] or None, and the dict `context`, the same for every block; it
    returns the carry and what is tapped, which comes back with a leading depth axis.

    `scan=False` unrolls the loop and leaves the parameters as they are. `remat`: 'none', 'full'
    (keep only each block's input) or 'dots' (keep the results of the linear layers).
    """
    body = block
    if remat != 'none':
        # Without a loop, common subexpressions would be merged again and nothing be saved.
        body = nn.remat(block, prevent_cse=not scan, policy=REMAT_POLICIES[remat])
    stack = nn.scan(
        body,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, 0, nn.broadcast),
        length=depth,
        unroll=1 if scan else depth,
    )(name=name, **fields)

    def run(carry, *, keep=None, **context):
        return stack(carry, first + jnp.arange(depth), keep, context)

    return run


def blocks_of(config, **fields):
    """`stacked_blocks` by a decoder's config, which has these names; `fields` are further ones."""
    names = ('scan', 'remat', 'heads', 'mlp_ratio', 'norm_eps', 'initialization', 'dtype')
    return stacked_blocks(config.depth, **{n: getattr(config, n) for n in names}, **fields)


def drop_path_factors(keys, *, rate, depth, branches=2):
    """Drop-path factors [depth,branches,B], float32: 0 or 1/(1 - the block's rate); per branch,
    example.

    `keys` are typed keys [B]; an example's draw depends on its own key alone, so that it is the
    same in every split of a batch. The rate rises linearly from 0 at the first block to `rate` at
    the last (Huang et al., ECCV 2016).
    """
    rates = jnp.linspace(0.0, rate, depth)[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (depth, branches)))(keys)
    kept = draws >= rates
    return jnp.moveaxis(kept / (1.0 - rates), 0, -1)


def attention_factors(keys, index, *, rate, shape):
    """Dropout of attention weights in block `index`: 0 or 1 / (1 - rate), float32 [B,*shape].

    keys: typed keys [B]; an example's draw depends on its own key alone.
    """

    def of_one(key):
        kept = jax.random.uniform(jax.random.fold_in(key, index), shape) >= rate
        return kept / (1.0 - rate)

    return jax.vmap(of_one)(keys)
