"""Attention as one Pallas kernel for TPUs: an image's logits and weights never leave the chip.

Sequences of patches are short, so that a program holds all queries, keys and values of an image and
a few heads at once. The backward pass computes the weights again: it needs the arguments alone.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mim_jax.errors import UserError

LANES, ROWS = 128, 8  # a block's last axis is a multiple of LANES, or the whole axis
MEMORY = 2**25  # of a chip, that a program may take; v4 has half of it


def attention(interpret, arrays, bias):
    """Result [B,Q,1,heads,head width] of queries, keys and values [B,S,1,heads,head width]; bias
    float32 [1 or B,heads,Q,S] or None.
    """
    q, k, v = (x[:, :, 0] for x in arrays)
    check_memory(q, k, bias)
    flat = (x.reshape(*x.shape[:2], -1) for x in (q, k, v))
    return _attention(q.shape[2], interpret, *flat, bias).reshape(arrays[0].shape)


def check_memory(q, k, bias):
    """Raises UserError where logits, weights and their gradients, and a bias, take too much."""
    queries, keys = q.shape[1], k.shape[1]
    matrix = 4 * -(-queries // ROWS) * ROWS * -(-keys // LANES) * LANES
    # Of a bias and its gradient there are two each, one of which is on its way.
    matrices = 3 + (0 if bias is None else 4 * heads_at_once(*q.shape[2:]))
    if matrix * matrices > MEMORY:
        raise UserError(
            f"attention_kernel = 'pallas' holds all weights of an image on the chip, and "
            f'{queries} x {keys} of them take too much{"" if bias is None else " with a bias"}: '
            "set it to 'xla'."
        )


def heads_at_once(heads, width):
    """How many of the heads fill a block's columns."""
    few = math.lcm(width, LANES) // width
    return few if heads % few == 0 else heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(heads, interpret, q, k, v, bias):
    """q [B,Q,D], k and v [B,S,D], bias float32 [1 or B,heads,Q,S] or None: [B,Q,D]."""
    specs, call = _setting(heads, interpret, q, k, bias)
    return call(_forward_kernel, in_specs=specs, out_specs=specs[0], out_shape=like(q))(
        q, k, v, bias
    )


def _backward(heads, interpret, inputs, gradient):
    specs, call = _setting(heads, interpret, *inputs[:2], inputs[3])
    return call(
        _backward_kernel,
        in_specs=(*specs, specs[0]),
        out_specs=specs,
        out_shape=jax.tree.map(like, inputs),
    )(*inputs, gradient)


_attention.defvjp(
    lambda heads, interpret, *inputs: (_attention(heads, interpret, *inputs), inputs), _backward
)


def like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _setting(heads, interpret, q, k, bias):
    """Blocks of (q, k, v, bias), and `pl.pallas_call` for every few heads of every image."""
    width = q.shape[-1] // heads
    few = heads_at_once(heads, width)
    shared = bias is not None and bias.shape[0] == 1

    def tokens(x):
        return pl.BlockSpec((None, x.shape[1], few * width), lambda h, b: (b, 0, h))

    of_bias = None
    if bias is not None:
        block = (None, few, *bias.shape[2:])
        of_bias = pl.BlockSpec(block, lambda h, b: (0 if shared else b, h, 0, 0))

    def call(kernel, **given):
        return pl.pallas_call(
            functools.partial(kernel, width=width, shared=shared),
            # Images are the inner axis: a bias stays on the chip from one to the next, and so does
            # the sum of its gradients.
            grid=(heads // few, q.shape[0]),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=MEMORY
            ),
            interpret=interpret,
            **given,
        )

    return (tokens(q), tokens(k), tokens(k), of_bias), call


def _forward_kernel(q, k, v, bias, out, *, width, shared):
    del shared
    for head, part in _heads(q, width):
        weights = _weights(q[:, part], k[:, part], None if bias is None else bias[head])
        out[:, part] = _product(weights.astype(v.dtype), v[:, part], (1, 0)).astype(out.dtype)


def _backward_kernel(q, k, v, bias, gradient, dq, dk, dv, dbias=None, *, width, shared):
    if shared:

        @pl.when(pl.program_id(1) == 0)
        def _():
            dbias[...] = jnp.zeros_like(dbias)

    for head, part in _heads(q, width):
        weights = _weights(q[:, part], k[:, part], None if bias is None else bias[head])
        above = gradient[:, part]
        dv[:, part] = _product(weights.astype(v.dtype), above, (0, 0)).astype(dv.dtype)
        dweights = _product(above, v[:, part], (1, 1))
        mean = jnp.sum(weights * dweights, axis=-1, keepdims=True)
        dlogits = weights * (dweights - mean)
        if bias is not None:
            dbias[head] = dlogits + dbias[head] if shared else dlogits
        dlogits = (dlogits * width**-0.5).astype(q.dtype)
        dq[:, part] = _product(dlogits, k[:, part], (1, 0)).astype(dq.dtype)
        dk[:, part] = _product(dlogits, q[:, part], (0, 0)).astype(dk.dtype)


def _heads(block, width):
    """Numbers of the heads in a block of tokens [S, heads * width], and their columns."""
    return [(i, slice(i * width, (i + 1) * width)) for i in range(block.shape[1] // width)]


def _weights(q, k, bias):
    """`attention_weights` float32 [Q,S] of q [Q,head width], k [S,head width] and bias [Q,S]."""
    logits = _product(q, k, (1, 1)) * q.shape[-1] ** -0.5
    if bias is not None:
        logits += bias
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _product(x, y, axes):
    """The product of two matrices over these of their axes, summed in float32."""
    dimensions = ((axes[:1], axes[1:]), ((), ()))
    # What JAX is told of precision is of float32; a chip has no other product of bfloat16.
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
