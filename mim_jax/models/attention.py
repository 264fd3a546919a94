"""Multi-head attention: of tokens to one another, and to a memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.attention_kernels import cudnn_attention
from mim_jax.models.attention_pallas import pallas_attention
from mim_jax.models.initializers import kernel_init
from mim_jax.models.tokenwise import Linear, product
from mim_jax.sharding import over_batch

QKV_BIASES = ('all', 'qv', 'none')


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
        qkv = over_batch(product(x.astype(self.dtype), kernel, 1))
        if self.bias != 'none':
            rows = {'all': 3, 'qv': 2}[self.bias]
            bias = self.param('bias', nn.initializers.zeros, (rows, *shape[2:]))
            if self.bias == 'qv':
                bias = jnp.stack([bias[0], jnp.zeros_like(bias[0]), bias[1]])
            qkv += bias.astype(self.dtype)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def attention_weights(q, k, *, bias=None):
    """softmax(q k / sqrt(head width) + bias) float32 [B,heads,Q,S].

    q [B,Q,heads,head width], k [B,S,heads,head width]; bias broadcasts to the result.
    """
    # The heads come before the sequence, which a CPU needs for its batched matrix product;
    # accelerators choose their own layouts either way.
    q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
    logits = inner_products(q, k) * q.shape[-1] ** -0.5
    if bias is not None:
        logits += bias
    return softmax(logits)


@jax.custom_jvp
def softmax(x):
    """Softmax over the last axis; the gradient needs its result alone, by default more."""
    return jax.nn.softmax(x, axis=-1)


softmax.defjvps(lambda tangent, y, _: y * (tangent - (y * tangent).sum(axis=-1, keepdims=True)))


@jax.custom_vjp
def inner_products(q, k):
    """q [B,heads,Q,head width] times k [B,heads,S,head width]: float32 [B,heads,Q,S].

    The gradients of q and k are products in their own dtype, like those of every other layer.
    By default they would be float32 ones, as the result is, which are slower on accelerators.
    """
    return jnp.einsum('bhqd,bhkd->bhqk', q, k, preferred_element_type=jnp.float32)


def _inner_products_gradient(inputs, gradient):
    q, k = inputs
    gradient = gradient.astype(q.dtype)
    return (
        jnp.einsum('bhqk,bhkd->bhqd', gradient, k),
        jnp.einsum('bhqk,bhqd->bhkd', gradient, q),
    )


inner_products.defvjp(lambda q, k: (inner_products(q, k), (q, k)), _inner_products_gradient)


def attend(q, k, v, *, bias=None, factors=None):
    """`attention_weights` times the values v [B,S,heads,head width]: [B,Q,heads,head width].

    factors: [B,heads,Q,S], by which the weights are multiplied first.
    """
    weights = attention_weights(q, k, bias=bias)
    if factors is not None:
        weights *= factors
    weights = weights.astype(v.dtype)
    v = v.transpose(0, 2, 1, 3)
    return jnp.einsum('bhqk,bhkd->bhqd', weights, v).transpose(0, 2, 1, 3)


KERNELS = {'xla': attend, 'cudnn': cudnn_attention, 'pallas': pallas_attention}


class Attention(nn.Module):
    """Multi-head self-attention on [B,S,D], and its queries and keys [B,S,heads,head width]."""

    heads: int
    qkv_bias: str
    initialization: str
    out_scale: float | jax.Array
    dtype: str
    kernel: str = 'xla'

    @nn.compact
    def __call__(self, x, bias=None, factors=None):
        q, k, v = QKV(self.heads, self.qkv_bias, self.initialization, self.dtype, name='qkv')(x)
        if factors is None:
            y = KERNELS[self.kernel](q, k, v, bias=bias)
        else:
            y = attend(q, k, v, bias=bias, factors=factors)
        y = Linear(
            (x.shape[-1],),
            in_axes=2,
            initialization=self.initialization,
            scale=self.out_scale,
            dtype=self.dtype,
            name='out',
        )(y)
        return y, (q, k)


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B,Q,D] to a memory [B,M,D']: [B,Q,D].

    Keys come from the memory, and values too unless the call has other `values` [B,M,D''].

    Parameters: query [D,heads,head width], key and value [D',heads,head width], out
    [heads,head width,D], with the biases that `qkv_bias` says (see `QKV`). D' need not be D.
    """

    heads: int
    qkv_bias: str = 'all'
    initialization: str = 'mae'
    out_scale: float | jax.Array = 1.0
    dtype: str = 'float32'
    kernel: str = 'xla'

    @nn.compact
    def __call__(self, x, memory, bias=None, values=None):
        values = memory if values is None else values
        width = x.shape[-1]
        linear = functools.partial(Linear, initialization=self.initialization, dtype=self.dtype)
        project = functools.partial(linear, (self.heads, width // self.heads))
        outer = self.qkv_bias != 'none'
        y = KERNELS[self.kernel](
            project(bias=outer, name='query')(x),
            project(bias=self.qkv_bias == 'all', name='key')(memory),
            project(bias=outer, name='value')(values),
            bias=bias,
        )
        return linear((width,), in_axes=2, scale=self.out_scale, name='out')(y)
