"""Attention by a library's fused kernel, which writes neither logits nor weights to memory."""

import jax
import jax.numpy as jnp

from mim_jax import sharding
from mim_jax.errors import UserError

# Training with a bias needs lengths that 2 divides; 8 measured no slower, see docs/performance.md.
MULTIPLE = 8
MAX_WIDTH = 128  # of a head, on every GPU that has the kernel
# Keeps a query from a key. Not -inf, of which the kernel takes differences.
HIDDEN = -1e9


def check_cudnn(*, width, dtype):
    """Raises ValueError for heads that the kernel does not take."""
    if width % 8 or width > MAX_WIDTH:
        raise ValueError(
            f"attention_kernel 'cudnn' needs heads whose width is a multiple of 8 and at most "
            f'{MAX_WIDTH}, got width / heads = {width}'
        )
    if dtype != 'bfloat16':
        raise ValueError(f"attention_kernel 'cudnn' needs dtype bfloat16, got {dtype}")


def cudnn_attention(q, k, v, *, bias=None):
    """`padded_attention` by cuDNN.

    Raises UserError for other devices than GPUs, and where the library is missing: JAX asks for its
    version while it traces.
    """
    platform = sharding.platform()
    if platform != 'gpu':
        raise UserError(
            f"attention_kernel = 'cudnn' is for NVIDIA GPUs, and this is a {platform}: set it to "
            "'xla' in every network that has it."
        )
    try:
        return padded_attention(q, k, v, bias=bias, implementation='cudnn')
    except RuntimeError as error:
        if 'cuDNN' not in str(error):
            raise
        raise UserError(
            f"attention_kernel = 'cudnn' needs the library ({error}), also to compile for a GPU "
            "that is not there: pip install nvidia-cudnn-cu13, or set it to 'xla'."
        ) from error


def padded_attention(q, k, v, *, bias=None, implementation):
    """`attend` by `jax.nn.dot_product_attention`, at lengths that MULTIPLE divides.

    q [B,Q,heads,head width], k and v [B,S,heads,head width]; bias [1,heads,Q,S], rounded to their
    dtype.

    Raises UserError for a bias as `padded_bias` does.
    """
    (_, queries, heads, _), keys = q.shape, k.shape[1]
    bias = padded_bias(bias, heads, queries, keys)
    if bias is not None:
        bias = bias.astype(q.dtype)
    y = jax.nn.dot_product_attention(
        padded(q), padded(k), padded(v), bias=bias, implementation=implementation
    )
    return y[:, :queries]


def padded(x):
    """x [B,S,...] with as many zeros after the S as make it a length that MULTIPLE divides."""
    more = -x.shape[1] % MULTIPLE
    return jnp.pad(x, ((0, 0), (0, more), *((0, 0) for _ in x.shape[2:]))) if more else x


def padded_bias(bias, heads, queries, keys):
    """bias [1,heads,Q,S] or None for padded queries and keys, from those that are added hidden.

    Raises UserError for a bias that differs from image to image: it would be large, and not every
    version of the kernel has its gradient.
    """
    if bias is not None and bias.shape != (1, heads, queries, keys):
        raise UserError(
            "attention_kernel = 'cudnn' takes only a bias that all images share and every head has "
            f'of its own, [1, {heads}, {queries}, {keys}], not {list(bias.shape)} (of chosen or '
            "leaving patches): set it to 'xla'."
        )
    more_queries, more_keys = -queries % MULTIPLE, -keys % MULTIPLE
    if bias is None and more_keys:
        bias = jnp.zeros((1, heads, queries, keys))
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, more_queries), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, more_keys)), constant_values=HIDDEN)
    return bias
