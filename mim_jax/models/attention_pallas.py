"""Attention as Pallas kernels, by the device: on TPUs and on NVIDIA GPUs."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mim_jax import pallas_kernels, sharding
from mim_jax.errors import UserError

SPLIT = PartitionSpec(*sharding.BATCH, None, None, 'tensor')
SPLIT_BIAS = PartitionSpec(*sharding.BATCH, 'tensor')
MEASURED = 256  # tokens, up to which it is taken for the faster form: 197 were measured
KERNELS = 'mim_jax.models.attention', "attention_kernel = 'pallas'"


def pallas_attention(q, k, v, *, bias=None, interpret=None):
    """`attend` without logits and weights in memory.

    q [B,Q,heads,head width], k and v [B,S,heads,head width]; bias broadcasts to [B,heads,Q,S], and
    is read once for all images where its first axis is 1. On a mesh every device computes its own
    images and heads.

    interpret: 'tpu' or 'gpu', whose kernel then runs on any device, slowly, for tests.

    Raises UserError on other devices than TPUs and NVIDIA's GPUs, and for shapes that the kernel of
    the device does not take.
    """
    return _attention([x[:, :, None] for x in (q, k, v)], bias, interpret)


def pallas_self_attention(qkv, *, bias=None, interpret=None):
    """`pallas_attention` of queries, keys and values in one array [B,S,3,heads,head width]."""
    return _attention([qkv], bias, interpret)


def reads_one_array():
    """Whether the kernel of the device reads queries, keys and values where they are in one array;
    a TPU's would have them copied.
    """
    return pallas_kernels.kind_here() == 'gpu'


def is_faster(dtype, *, width, tokens, bias):
    """Whether it is the faster form here: for Hopper GPUs in bfloat16, if the kernel takes heads of
    that width and so many tokens, `bias` or not. Other devices, and other lengths, are unmeasured.
    """
    if not sharding.for_hopper() or dtype != 'bfloat16' or tokens > MEASURED:
        return False
    try:
        pallas_kernels.kernel(*KERNELS, 'gpu').check(width=width, tokens=tokens, bias=bias)
    except UserError:
        return False
    return True


def _attention(arrays, bias, interpret):
    """[B,Q,heads,head width] of arrays [B,S,n,heads,head width]: three, or one with n = 3."""
    kernel = pallas_kernels.kernel(*KERNELS, interpret)

    def part(*arrays):
        *arrays, bias = arrays if biases else (*arrays, None)
        return kernel.attention(bool(interpret), tuple(arrays), bias)

    biases = []
    if bias is not None:
        (_, queries, _, heads, _), keys = arrays[0].shape, arrays[-1].shape[1]
        whole = (bias.shape[0], heads, queries, keys)
        biases = [jnp.broadcast_to(bias.astype(jnp.float32), whole)]
    specs = [SPLIT for _ in arrays] + [SPLIT_BIAS for _ in biases]
    return sharding.per_device(part, *specs)(*arrays, *biases)[:, :, 0]
