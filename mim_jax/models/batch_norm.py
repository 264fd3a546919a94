"""Batch norm, in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.errors import UserError

# Share of the newest batch in running averages: PyTorch's `momentum`.
NEWEST = 0.1


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias of [...,D] over all axes but the last,
    float32.

    The statistics are those of the batch in hand; under jit of the global batch, however it is
    split over devices (as SyncBatchNorm).

    affine: with scale and bias. running: averages of the statistics are kept, in the collection
    `state`: mean, variance. A call that trains moves them a tenth of the way to those of its
    batch, the variance's to the unbiased one; any other takes them in place of the batch's.
    """

    affine: bool = True
    running: bool = False
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train=True):
        x, shape = x.astype(jnp.float32), x.shape[-1:]
        averages = ()
        if self.running:
            if not self.is_initializing() and not self.has_variable('state', 'variance'):
                raise UserError(
                    "this network's state lacks a running variance: an earlier version wrote it; "
                    'use that version, or train again.'
                )
            averages = (
                self.variable('state', 'mean', jnp.zeros, shape),
                self.variable('state', 'variance', jnp.ones, shape),
            )
        if train or not self.running:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            variance = ((x - mean) ** 2).mean(axes)
            count = x.size // x.shape[-1]
            newest = mean, variance * count / max(count - 1, 1)
            for average, new in zip(averages, newest, strict=False):
                average.value = (1 - NEWEST) * average.value + NEWEST * jax.lax.stop_gradient(new)
        else:
            mean, variance = (average.value for average in averages)
        x = (x - mean) / jnp.sqrt(variance + self.eps)
        if not self.affine:
            return x
        scale = self.param('scale', nn.initializers.ones, shape)
        return x * scale + self.param('bias', nn.initializers.zeros, shape)
