"""Layers that treat every token alone: linear layers, LayerNorm, the MLP."""

import functools

import flax.linen as nn
import jax

from mim_jax.models.initializers import kernel_init
from mim_jax.sharding import over_batch

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x, kernel, axes):
    """The last `axes` axes of x [..., *inputs] times kernel [*inputs, *features]: [..., *features].

    The gradient of the kernel is a product with the kernel's order of axes. By default its features
    come first, and a CPU passes over the memory once more to transpose it.
    """
    rows = x.ndim - axes
    return _contracted(x, kernel, range(rows, x.ndim), range(axes))


def _contracted(a, b, axes_of_a, axes_of_b):
    return jax.lax.dot_general(a, b, ((tuple(axes_of_a), tuple(axes_of_b)), ((), ())))


def _product_gradient(axes, inputs, gradient):
    x, kernel = inputs
    rows = x.ndim - axes
    features = range(rows, gradient.ndim), range(axes, kernel.ndim)
    return (
        _contracted(gradient, kernel, *features),
        _contracted(x, gradient, range(rows), range(rows)),
    )


product.defvjp(lambda x, kernel, axes: (product(x, kernel, axes), (x, kernel)), _product_gradient)


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
