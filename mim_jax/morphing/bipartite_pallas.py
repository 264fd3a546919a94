"""Bipartite matching in one Pallas kernel, by the device: on TPUs and on NVIDIA GPUs."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mim_jax import pallas_kernels, sharding
from mim_jax.errors import UserError
from mim_jax.morphing import pairs

SPLIT = PartitionSpec(*sharding.BATCH)
FIELD = "config.objective.morphing.grouping.kernel = 'pallas'"
KERNELS = 'mim_jax.morphing.bipartite', FIELD


@functools.partial(jax.jit, static_argnames='interpret')
def pallas_groups(tokens, tokens_per_step, num_steps, protected, *, interpret=None):
    """Groups [B, N] int32 of `bipartite.bipartite_groups`, from its arguments as arrays. On a mesh
    every device groups its own images.

    interpret: 'tpu' or 'gpu', whose kernel then runs on any device, slowly, for tests.

    Raises UserError on other devices than TPUs and NVIDIA's GPUs, and for too many tokens.
    """
    kernel = pallas_kernels.kernel(*KERNELS, interpret)
    batch, num_tokens, _ = tokens.shape
    if num_tokens > kernel.MAX_TOKENS:
        raise UserError(
            f'{FIELD} holds an image on the chip, and {num_tokens} tokens take too much: at most '
            f"{kernel.MAX_TOKENS} here; set it to 'xla'."
        )
    schedule = jnp.stack([tokens_per_step, num_steps, protected])
    schedules = jnp.broadcast_to(schedule, (batch, 3))
    return _of_images(kernel.grouped, interpret)(*pairs.gram(tokens), schedules)


def is_faster(num_tokens):
    """Whether the kernel is the faster form here: for Hopper GPUs. Others are unmeasured."""
    if not sharding.for_hopper():
        return False
    try:
        return num_tokens <= pallas_kernels.kernel(*KERNELS, 'gpu').MAX_TOKENS
    except UserError:
        return False


@functools.cache
def _of_images(grouped, interpret):
    """Function of inner products, two [B, N, N], and schedules [B, 3] to groups [B, N]."""

    @jax.custom_batching.custom_vmap
    def groups(*arrays):
        call = functools.partial(grouped, interpret=bool(interpret))
        return sharding.per_device(call, SPLIT, SPLIT, SPLIT)(*arrays)

    @groups.def_vmap
    def _(size, batched, *arrays):
        # Shares of a batch, each with its schedule, are images like any others.
        whole = (
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(arrays, batched, strict=True)
        )
        found = groups(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        return found.reshape(size, -1, found.shape[-1]), True

    return groups
