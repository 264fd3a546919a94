"""Layers that treat every token alone: linear layers, LayerNorm, the MLP."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.initializers import kernel_init
from mim_jax.sharding import on_one_cpu, over_batch


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x times the normal distribution function, computed in float32.

    Its gradient keeps x alone. There erf is that of -x: of x, a compiler would find that the
    forward pass has it already, and keep it in an array as large as x.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_gradient(x, gradient):
    y = x.astype(jnp.float32)
    below = 0.5 * (1.0 - jax.lax.erf(y * -math.sqrt(0.5)))
    density = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2.0 * math.pi)
    return ((gradient * (below + y * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_gradient)

# These are computed again in the backward pass, from what went in: a loop over blocks would write
# each of their intermediate results to memory and read it again.
_again = functools.partial(jax.checkpoint, prevent_cse=False)

ACTIVATIONS = {
    'gelu': gelu,
    'gelu_tanh': _again(functools.partial(jax.nn.gelu, approximate=True)),
    'quick_gelu': _again(lambda x: x * jax.nn.sigmoid(1.702 * x)),
}


def layer_norm(eps, dtype, name, *, affine=True):
    """LayerNorm over the last axis; statistics in float32, by the two-pass variance.

    Without `affine` it has no scale and bias of its own.
    """
    return LayerNorm(eps, dtype, affine, name=name)


class LayerNorm(nn.Module):
    """x [..., D] to [..., D] in `dtype`: `normalized`, with parameters scale and bias [D]."""

    eps: float
    dtype: str
    affine: bool = True

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1:]
        scale, bias = jnp.ones(width), jnp.zeros(width)
        if self.affine:
            scale = self.param('scale', nn.initializers.ones, width)
            bias = self.param('bias', nn.initializers.zeros, width)
        return normalized(x, scale, bias, self.eps, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalized(x, scale, bias, eps, dtype):
    """x [..., D] with mean 0 and variance 1 over the last axis, times scale plus bias [D].

    The gradient is the usual one in terms of two means over the last axis, of which the backward
    pass reads x once; it keeps x and the statistics alone.
    """
    return _normalized(x, scale, bias, eps, dtype)[0]


def _normalized(x, scale, bias, eps, dtype):
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y - mean).mean(axis=-1, keepdims=True) + eps)
    mean, inverse = apart(mean, inverse)
    y = (y - mean) * inverse * scale + bias
    return y.astype(dtype), (x, scale, mean, inverse)


def _normalized_gradient(eps, dtype, kept, gradient):
    x, scale, mean, inverse = kept
    gradient = gradient.astype(jnp.float32)
    unit = (x.astype(jnp.float32) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    of_scale, of_bias = (gradient * unit).sum(axis=rows), gradient.sum(axis=rows)
    gradient *= scale
    along = (gradient * unit).mean(axis=-1, keepdims=True)
    common, along = apart(gradient.mean(axis=-1, keepdims=True), along)
    of_x = (gradient - common - unit * along) * inverse
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


normalized.defvjp(_normalized, _normalized_gradient)


def apart(*statistics):
    """Statistics of rows, which are written to memory before they are used.

    On a GPU one kernel of both is slower than two: it keeps a whole row between them.
    """
    return jax.lax.optimization_barrier(statistics)


def product(x, kernel, axes):
    """The last `axes` axes of x [..., *inputs] times kernel [*inputs, *features]: [..., *features].

    On a CPU the rows of x are one axis of the product. With several, XLA would bring operands of
    the kernel's gradient into another order first. Elsewhere they stay: a TPU would have to move
    the tokens, whose number its tiles do not divide.
    """
    rows = x.shape[: x.ndim - axes]
    if on_one_cpu():
        x = x.reshape(-1, *x.shape[len(rows) :])
    contracted = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    y = jax.lax.dot_general(x, kernel, (contracted, ((), ())))
    return y.reshape(*rows, *kernel.shape[axes:]) if on_one_cpu() else y


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
        y = product(x.astype(self.dtype), kernel.astype(self.dtype), self.in_axes)
        if self.bias:
            y += self.param('bias', nn.initializers.zeros, self.features).astype(self.dtype)
        return over_batch(y)


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
