"""Layers that treat every token alone: linear layers, LayerNorm, the MLP."""

import functools

import flax.linen as nn
import jax

from mim_jax.models.initializers import kernel_init
from mim_jax.sharding import on_one_cpu, over_batch

# Activations and norms are computed again in the backward pass, from what went in: a loop over
# blocks would write each of their intermediate results to memory and read it again. Where there is
# no loop, XLA may merge the two computations.
_again = functools.partial(jax.checkpoint, prevent_cse=False)

ACTIVATIONS = {
    'gelu': _again(functools.partial(jax.nn.gelu, approximate=False)),
    'gelu_tanh': _again(functools.partial(jax.nn.gelu, approximate=True)),
    'quick_gelu': _again(lambda x: x * jax.nn.sigmoid(1.702 * x)),
}


def layer_norm(eps, dtype, name, *, affine=True):
    """LayerNorm over the last axis; statistics in float32, by the two-pass variance.

    Without `affine` it has no scale and bias of its own.
    """
    return nn.remat(nn.LayerNorm, prevent_cse=False)(
        epsilon=eps,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


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
