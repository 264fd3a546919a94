"""Attention by a library's fused kernel, which writes neither logits nor weights to memory."""

import jax
import jax.numpy as jnp

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

    Raises UserError on other devices than GPUs.
    """
    platform = jax.default_backend()
    if platform != 'gpu':
        raise UserError(
            f"attention_kernel = 'cudnn' is for NVIDIA GPUs, and this is a {platform}: set it to "
            "'xla' in every network that has it."
        )
    return padded_attention(q, k, v, bias=bias, implementation='cudnn')


def padded_attention(q, k, v, *, bias=None, implementation):
    """`attend` by `jax.nn.dot_product_attention`, at lengths that MULTIPLE divides.

    q [B,Q,heads,head width], k and v [B,S,heads,head width]; bias [1,heads,Q,S], rounded to their
    dtype: the keys that are added are hidden by it.

    Raises UserError for a bias that differs from image to image: it would be large, and not every
    version of the kernel has its gradient.
    """
    (_, queries, heads, _), keys = q.shape, k.shape[1]
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
        bias = bias.astype(q.dtype)
    q = longer(q, more_queries)
    k, v = longer(k, more_keys), longer(v, more_keys)
    y = jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)
    return y[:, :queries]


def longer(x, more):
    """x [B,S,heads,head width] with `more` zeros after the S."""
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
