"""Pre-norm Transformer blocks, stacked on a leading depth axis."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.initializers import kernel_init

ACTIVATIONS = {
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
}
REMAT_POLICIES = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def layer_norm(eps, dtype, name):
    """LayerNorm over the last axis; statistics in float32, by the two-pass variance."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


class Linear(nn.Module):
    """x [..., *inputs] times `kernel` [*inputs, *features] plus `bias` [*features], in `dtype`."""

    features: tuple[int, ...]
    in_axes: int = 1
    bias: bool = True
    initialization: str = 'mae'
    scale: float | jax.Array = 1.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
        shape = (*x.shape[x.ndim - self.in_axes :], *self.features)
        kernel = self.param(
            'kernel',
            kernel_init(self.initialization, in_axes=self.in_axes, scale=self.scale),
            shape,
        )
        contracted = tuple(range(x.ndim - self.in_axes, x.ndim)), tuple(range(self.in_axes))
        y = jax.lax.dot_general(
            x.astype(self.dtype), kernel.astype(self.dtype), (contracted, ((), ()))
        )
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, self.features).astype(self.dtype)
        return y


class QKV(nn.Module):
    """Queries, keys and values [B,S,heads,head width] from one kernel [D,3,heads,head width].

    The head axis stands alone so that it can be split over devices. `bias`: 'all' holds [3,...],
    'qv' holds [2,...] (BEiT: a key bias adds the same to all logits of a query), 'none' nothing.
    """

    heads: int
    bias: str
    initialization: str
    dtype: str

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        shape = (width, 3, self.heads, width // self.heads)
        kernel = self.param('kernel', kernel_init(self.initialization), shape).astype(self.dtype)
        qkv = jnp.einsum('bsd,dthk->bsthk', x, kernel)
        if self.bias != 'none':
            rows = {'all': 3, 'qv': 2}[self.bias]
            bias = self.param('bias', nn.initializers.zeros, (rows, *shape[2:]))
            if self.bias == 'qv':
                bias = jnp.stack([bias[0], jnp.zeros_like(bias[0]), bias[1]])
            qkv += bias.astype(self.dtype)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def attend(q, k, v, *, bias=None):
    """softmax(q k / sqrt(head width) + bias) v for [B,S,heads,head width]; softmax in float32.

    The heads come before the sequence in both products, which a CPU needs for its batched matrix
    product; accelerators choose their own layouts either way.
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    logits = jnp.einsum('bhqd,bhkd->bhqk', q, k, preferred_element_type=jnp.float32)
    logits *= q.shape[-1] ** -0.5
    if bias is not None:
        logits += bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqk,bhkd->bhqd', weights, v).transpose(0, 2, 1, 3)


class Attention(nn.Module):
    """Multi-head self-attention on [B,S,D], and its keys [B,S,heads,head width]; logits and softmax
    in float32.
    """

    heads: int
    qkv_bias: str
    initialization: str
    out_scale: float | jax.Array
    dtype: str

    @nn.compact
    def __call__(self, x, bias=None):
        q, k, v = QKV(self.heads, self.qkv_bias, self.initialization, self.dtype, name='qkv')(x)
        y = attend(q, k, v, bias=bias)
        y = Linear(
            (x.shape[-1],),
            in_axes=2,
            initialization=self.initialization,
            scale=self.out_scale,
            dtype=self.dtype,
            name='out',
        )(y)
        return y, k


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    hidden: int
    activation: str
    initialization: str
    out_scale: float | jax.Array
    dtype: str

    @nn.compact
    def __call__(self, x):
        common = {'initialization': self.initialization, 'dtype': self.dtype}
        y = ACTIVATIONS[self.activation](Linear((self.hidden,), name='fc1', **common)(x))
        return Linear((x.shape[-1],), scale=self.out_scale, name='fc2', **common)(y)


class Block(nn.Module):
    """x + keep * scale * Attention(norm(x)), then the same with the MLP.

    `index` is the block's place (from 0, traced under the scan): the 'beit' initialisation divides
    the kernels that write to the residual stream by sqrt(2 (index + 1)). `keep` [2,B] holds the
    drop-path factors of the two branches, or is None. `bias` [1|B,heads,S,S] is added to the
    logits; `relative` constructs the block's own RelativePosition, whose bias is added too.
    `merge` is called between the two branches with x, the block's keys [B,S,heads,head width] and a
    state, and returns x and the state for the next block: with it the carry is (x, state), without
    it x. Returns (carry, x if collect else None).
    """

    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    qkv_bias: str = 'all'
    activation: str = 'gelu'
    norm_eps: float = 1e-6
    initialization: str = 'mae'
    dtype: str = 'float32'
    collect: bool = False
    relative: Callable | None = None
    merge: Callable | None = None

    @nn.compact
    def __call__(self, carry, index, keep, bias, visible_ids):
        x, state = carry if self.merge else (carry, None)
        width = x.shape[-1]
        out_scale = jax.lax.rsqrt(2.0 * (index + 1)) if self.initialization == 'beit' else 1.0
        if self.relative is not None:
            own = self.relative(name='relative_position')(visible_ids)
            bias = own if bias is None else bias + own
        attention = Attention(
            self.heads, self.qkv_bias, self.initialization, out_scale, self.dtype, name='attention'
        )
        mlp = MLP(
            int(width * self.mlp_ratio),
            self.activation,
            self.initialization,
            out_scale,
            self.dtype,
            name='mlp',
        )

        def residual(x, y, branch):
            if self.layer_scale is not None:
                initial = nn.initializers.constant(self.layer_scale)
                y *= self.param(f'layer_scale{branch}', initial, (width,)).astype(self.dtype)
            if keep is not None:
                y *= keep[branch - 1][:, None, None].astype(self.dtype)
            return x + y

        y, keys = attention(layer_norm(self.norm_eps, self.dtype, 'norm1')(x), bias)
        x = residual(x, y, 1)
        if self.merge:
            x, state = self.merge(x, keys, state)
        x = residual(x, mlp(layer_norm(self.norm_eps, self.dtype, 'norm2')(x)), 2)
        return (x, state) if self.merge else x, x if self.collect else None


def stacked_blocks(depth, *, first=0, scan=True, remat='none', name='blocks', **block):
    """`depth` blocks whose parameters lie on a leading axis; `block` are fields of `Block`.

    `first` is the place of the first block (see `Block`), where others come before it.

    The module maps (x, keep [depth,2,B] or None, bias or None, visible_ids or None) to
    (x, outputs of every block [depth,B,S,D] if collect); with `merge` x is (x, state), see `Block`.
    `scan=False` unrolls the loop and leaves the parameters as they are. `remat`: 'none', 'full'
    (keep only each block's input) or 'dots' (keep the results of the linear layers).
    """
    body = Block
    if remat != 'none':
        # Without a loop, common subexpressions would be merged again and nothing be saved.
        body = nn.remat(Block, prevent_cse=not scan, policy=REMAT_POLICIES[remat])
    stack = nn.scan(
        body,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=depth,
        unroll=1 if scan else depth,
    )(name=name, **block)

    def run(x, *, keep=None, bias=None, visible_ids=None):
        return stack(x, first + jnp.arange(depth), keep, bias, visible_ids)

    return run


def drop_path_factors(keys, *, rate, depth):
    """Drop-path factors [depth,2,B], float32: 0 or 1/(1 - the block's rate); per branch, example.

    `keys` are typed keys [B]; an example's draw depends on its own key alone, so that it is the
    same in every split of a batch. The rate rises linearly from 0 at the first block to `rate` at
    the last (Huang et al., ECCV 2016).
    """
    rates = jnp.linspace(0.0, rate, depth)[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (depth, 2)))(keys)
    kept = draws >= rates
    return jnp.moveaxis(kept / (1.0 - rates), 0, -1)
