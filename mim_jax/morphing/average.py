"""Averaging over groups of tokens."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def morph(x, groups):
    """Replaces every token by the mean of its group.

    The map is linear and symmetric in the tokens, so that its transpose, used for the gradient, is
    the map itself. A loss averaged over all morphed tokens weighs each group by its size.

    Args:
      x: [..., N, D], any float dtype.
      groups: [..., N] integers in 0..N-1; tokens of an image with the same number form a group.

    Returns:
      [..., N, D] float32.

    Raises:
      ValueError: the shapes do not fit.
    """
    if x.ndim < 3 or groups.shape != x.shape[:-1]:
        raise ValueError(
            f'x must be [..., N, D] and groups [..., N], got {x.shape} and {groups.shape}.'
        )
    flat = x.reshape(-1, *x.shape[-2:]).astype(jnp.float32)
    return _average(flat, groups.reshape(-1, x.shape[-2])).reshape(x.shape)


@jax.custom_vjp
def _average(x, groups):
    return lax.platform_dependent(x, groups, cpu=_average_segments, default=_average_matmul)


_average.defvjp(
    lambda x, groups: (_average(x, groups), groups),
    lambda groups, gradient: (_average(gradient, groups), None),
)


def _average_segments(x, groups):
    total, size = _sums_segments(x, groups)
    mean = total / jnp.maximum(size, 1.0)[..., None]  # empty groups are read by nobody
    return jnp.take_along_axis(mean, groups[..., None], axis=1)


def _average_matmul(x, groups):
    """On GPU a scatter would add in an order that changes from run to run; on TPU it is slow."""
    same = groups[:, :, None] == groups[:, None, :]
    return indicator_matmul(same, x) / jnp.sum(same, axis=-1, dtype=x.dtype)[..., None]


def group_sums(x, groups):
    """Sums [B, N, D] of float32 x [B, N, D] over the groups 0..N-1, and their sizes [B, N]."""
    return lax.platform_dependent(x, groups, cpu=_sums_segments, default=_sums_matmul)


def _sums_segments(x, groups):
    def one(x, groups):
        total = jnp.zeros_like(x).at[groups].add(x)
        return total, jnp.zeros(groups.shape, x.dtype).at[groups].add(1.0)

    return jax.vmap(one)(x, groups)


def _sums_matmul(x, groups):
    inside = jnp.arange(groups.shape[1])[None, :, None] == groups[:, None, :]
    return indicator_matmul(inside, x), jnp.sum(inside, axis=-1, dtype=x.dtype)


def indicator_matmul(indicator, x):
    """Matrix product [B, M, D] of boolean [B, M, N] with float32 x [B, N, D], not rounded.

    A float32 is the sum of three bfloat16, so a fast product with exact terms does it; one, and not
    a sum of three, so that no product but the last is written to memory.
    """
    parts = []
    for _ in range(3):
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return jnp.einsum(
        'bmn,bnd->bmd',
        jnp.concatenate([indicator.astype(jnp.bfloat16)] * 3, axis=2),
        jnp.concatenate(parts, axis=1),
        preferred_element_type=jnp.float32,
        precision=lax.Precision.DEFAULT,
    )
