"""Convolutions on maps [B,H,W,C]."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.batch_norm import BatchNorm


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU: the ConvModule of mmcv.

    side: of the kernel, odd; the map keeps its size. Kernels start as He et al.'s normal by the
    outputs, as there. Parameters: conv/kernel [side,side,C,features], norm.
    """

    features: int
    side: int = 1
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(
            self.features,
            (self.side, self.side),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
            name='conv',
        )(x)
        return jax.nn.relu(BatchNorm(running=True, name='norm')(x, train=train)).astype(self.dtype)


class Doubled(nn.Module):
    """Twice the size by a transposed convolution of 2x2 with stride 2: every pixel alone becomes
    four. Parameters as PyTorch starts them: kernel [C,2,2,features], bias [features].
    """

    features: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        bound = (4 * self.features) ** -0.5  # its rule takes the outputs for the inputs here
        start = _uniform(bound)
        kernel = self.param('kernel', start, (channels, 2, 2, self.features))
        bias = self.param('bias', start, (self.features,))
        x = jnp.einsum('bhwc,cijf->bhiwjf', x.astype(self.dtype), kernel.astype(self.dtype))
        return x.reshape(batch, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)


def _uniform(bound):
    def start(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start
