"""Convolutions on maps [B,H,W,C], and batch norm that keeps running averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.heads import BATCH_NORM_EPS

# Share of the newest batch in the running averages: PyTorch's `momentum`.
NEWEST = 0.1


class RunningNorm(nn.Module):
    """Batch norm over all axes but the last, float32, eps 1e-5.

    In training it takes the statistics of the batch in hand (under jit those of the global batch,
    as SyncBatchNorm) and moves its averages a tenth of the way to them, the variance's by the
    unbiased one; otherwise it takes the averages. Parameters: scale, bias; collection `state`:
    mean, variance.
    """

    @nn.compact
    def __call__(self, x, *, train):
        x = x.astype(jnp.float32)
        shape = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        averages = (
            self.variable('state', 'mean', jnp.zeros, shape),
            self.variable('state', 'variance', jnp.ones, shape),
        )
        mean, variance = (average.value for average in averages)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            variance = ((x - mean) ** 2).mean(axes)
            count = x.size // x.shape[-1]
            newest = mean, variance * count / max(count - 1, 1)
            for average, new in zip(averages, newest, strict=True):
                average.value = (1 - NEWEST) * average.value + NEWEST * jax.lax.stop_gradient(new)
        return (x - mean) / jnp.sqrt(variance + BATCH_NORM_EPS) * scale + bias


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
        return jax.nn.relu(RunningNorm(name='norm')(x, train=train)).astype(self.dtype)


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
