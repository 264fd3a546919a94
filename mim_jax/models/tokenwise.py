"""Layers that treat every token alone: linear layers, LayerNorm, the MLP."""

import functools

import flax.linen as nn
import jax

from mim_jax.models.initializers import kernel_init
from mim_jax.sharding import over_batch

ACTIVATIONS = {
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def layer_norm(eps, dtype, name, *, affine=True):
    """LayerNorm over the last axis; statistics in float32, by the two-pass variance.

    Without `affine` it has no scale and bias of its own.
    """
    return nn.LayerNorm(
        epsilon=eps,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        name=name,
    )


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
