"""Multi-head attention: of tokens to one another, and to a memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.attention_kernels import cudnn_attention, padded, padded_bias
from mim_jax.models.attention_pallas import (
    is_faster,
    pallas_attention,
    pallas_self_attention,
    reads_one_array,
)
from mim_jax.models.initializers import kernel_init
from mim_jax.models.tokenwise import Linear, product
from mim_jax.sharding import over_batch, tensor_parallel

QKV_BIASES = ('all', 'qv', 'none')


class QKV(nn.Module):
    """Queries, keys and values [B,S,3,heads,head width] from one kernel [D,3,heads,head width].

    The head axis stands alone so that it can be split over devices. `bias`: 'all' holds [3,...],
    'qv' holds [2,...] (BEiT: a key bias adds the same to all logits of a query), 'none' nothing.
    apart: three arrays [B,S,heads,head width] by three products, for what takes each as an array of
    its own and would copy a part.
    """

    heads: int
    bias: str
    initialization: str
    dtype: str
    apart: bool = False

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        shape = (width, 3, self.heads, width // self.heads)
        x = x.astype(self.dtype)
        kernel = self.param('kernel', kernel_init(self.initialization), shape).astype(self.dtype)
        bias = None
        if self.bias != 'none':
            rows = {'all': 3, 'qv': 2}[self.bias]
            bias = self.param('bias', nn.initializers.zeros, (rows, *shape[2:])).astype(self.dtype)
            if self.bias == 'qv':
                bias = jnp.stack([bias[0], jnp.zeros_like(bias[0]), bias[1]])
        if not self.apart:
            return projected(x, kernel, bias)
        return tuple(
            projected(x, kernel[:, i], None if bias is None else bias[i]) for i in range(3)
        )


def projected(x, kernel, bias):
    """x [B,S,D] times kernel [D,*features], plus bias [*features] or None: [B,S,*features]."""
    width, *features = kernel.shape
    if not tensor_parallel():
        # A GPU's library adds the bias as it multiplies, if the features are one axis.
        kernel = kernel.reshape(width, -1)
    y = over_batch(product(x, kernel, 1))
    if bias is not None:
        y += bias.reshape(y.shape[2:])
    return y.reshape(*x.shape[:-1], *features)


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


def chosen(kernel, dtype, *, heads, width, tokens, bias):
    """The name in KERNELS that 'auto' stands for here, in self-attention of so many tokens with
    heads of that width and a bias or None; any other name as it is.
    """
    if kernel != 'auto':
        return kernel
    shared = bias is None or bias.shape == (1, heads, tokens, tokens)
    faster = is_faster(dtype, width=width, tokens=tokens, bias=bias is not None)
    return 'pallas' if shared and faster else 'xla'


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
        _, length, width = x.shape
        kernel = chosen(
            self.kernel,
            self.dtype,
            heads=self.heads,
            width=width // self.heads,
            tokens=length,
            bias=bias,
        )
        if kernel == 'cudnn':
            # From before the first product to after the last, which copies nothing for it.
            x, bias = padded(x), padded_bias(bias, self.heads, length, length)
        in_one = kernel == 'pallas' and reads_one_array()
        apart = not (in_one or kernel == 'xla')
        qkv = QKV(
            self.heads, self.qkv_bias, self.initialization, self.dtype, apart=apart, name='qkv'
        )(x)
        q, k, v = qkv if apart else (qkv[:, :, i] for i in range(3))
        if factors is not None:
            y = attend(q, k, v, bias=bias, factors=factors)
        elif in_one:
            y = pallas_self_attention(qkv, bias=bias)
        else:
            y = KERNELS[kernel](q, k, v, bias=bias)
        y = Linear(
            (width,),
            in_axes=2,
            initialization=self.initialization,
            scale=self.out_scale,
            dtype=self.dtype,
            name='out',
        )(y)
        return y[:, :length], (q[:, :length], k[:, :length])


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
        kernel = 'xla' if self.kernel == 'auto' else self.kernel  # unmeasured
        values = memory if values is None else values
        width = x.shape[-1]
        linear = functools.partial(Linear, initialization=self.initialization, dtype=self.dtype)
        project = functools.partial(linear, (self.heads, width // self.heads))
        outer = self.qkv_bias != 'none'
        y = KERNELS[kernel](
            project(bias=outer, name='query')(x),
            project(bias=self.qkv_bias == 'all', name='key')(memory),
            project(bias=outer, name='value')(values),
            bias=bias,
        )
        return linear((width,), in_axes=2, scale=self.out_scale, name='out')(y)
