"""Time of self-attention with a learned bias, forward and backward, in several ways.

    python benchmarks/attention.py [--batch=256] [--tokens=197] [--heads=12] [--head_width=64]

`ours` is `mim_jax.models.attention.attend`, `attention_kernel=cudnn` (for GPUs) and
`attention_kernel=pallas` (for TPUs and NVIDIA GPUs) what that field of a model makes of it, padding
included. The others are `jax.nn.dot_product_attention`; at a padded length the bias hides the added
keys and all arrays have that length before and after, as they would if a network padded its tokens
once. `error` is the relative difference of output and gradients of the true tokens from `ours` in
float32.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from timing import milliseconds, reason

from mim_jax.models.attention import attend
from mim_jax.models.attention_kernels import cudnn_attention
from mim_jax.models.attention_pallas import pallas_attention

HIDDEN = -1e9


def same_layout(q, k, v, *, bias=None):
    """`attend` without its transposes."""
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
    logits *= q.shape[-1] ** -0.5
    if bias is not None:
        logits += bias
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def library(implementation, q, k, v, *, bias=None):
    if bias is not None:
        bias = bias.astype(q.dtype)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)


def padded(attention, tokens, q, k, v, *, bias=None):
    """`attention` at the length of q, of which `tokens` are true."""
    more = q.shape[1] - tokens
    columns = ((0, 0), (0, 0), (0, more), (0, 0))
    bias = jnp.pad(bias, columns)
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, more)), constant_values=HIDDEN)
    return attention(q, k, v, bias=bias)


def forms(tokens):
    """name: (function, length, with bias)."""
    xla, cudnn = (functools.partial(library, name) for name in ('xla', 'cudnn'))
    result = {
        'ours': (attend, tokens, True),
        'ours, no transposes': (same_layout, tokens, True),
        'xla': (xla, tokens, True),
        'attention_kernel=cudnn': (cudnn_attention, tokens, True),
        'attention_kernel=pallas': (pallas_attention, tokens, True),
    }
    for length in sorted({-(-tokens // step) * step for step in (2, 8)} - {tokens}):
        for name, function in (('cudnn', cudnn), ('ours', attend)):
            result[f'{name}, padded to {length}'] = (
                functools.partial(padded, function, tokens),
                length,
                True,
            )
    result['ours, no bias'] = (attend, tokens, False)
    result['cudnn, no bias'] = (cudnn, tokens, False)
    result['pallas, no bias'] = (pallas_attention, tokens, False)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--tokens', type=int, default=197)
    parser.add_argument('--heads', type=int, default=12)
    parser.add_argument('--head_width', type=int, default=64)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}; {options}')
    print(f'{"":24}{"forward ms":>12}{"both ms":>12}{"GiB":>8}{"error":>10}', flush=True)

    shape = (options.batch, options.tokens, options.heads, options.head_width)
    *inputs, cotangent = jax.random.normal(jax.random.key(0), (4, *shape)).astype(jnp.bfloat16)
    bias = jax.random.normal(
        jax.random.key(1), (1, options.heads, options.tokens, options.tokens), jnp.float32
    )

    def both(attention, cotangent, q, k, v, bias):
        out, pull = jax.vjp(lambda q, k, v, b: attention(q, k, v, bias=b), q, k, v, bias)
        return out, pull(cotangent)

    def reference(bias):
        few = slice(0, 8)  # of the batch; no bias gradient
        exact = [x[few].astype(jnp.float32) for x in (*inputs, cotangent)]
        with jax.default_matmul_precision('highest'):
            out, grads = jax.jit(functools.partial(both, attend))(exact[3], *exact[:3], bias)
        return [out, *grads[:3]]

    expected = {True: reference(bias), False: reference(None)}
    for name, (attention, length, with_bias) in forms(options.tokens).items():
        try:
            pad = ((0, 0), (0, length - options.tokens), (0, 0), (0, 0))
            q, k, v, out = (jnp.pad(x, pad) for x in (*inputs, cotangent))
            b = bias if with_bias else None
            forward = jax.jit(lambda q, k, v, b, f=attention: f(q, k, v, bias=b))
            step = jax.jit(functools.partial(both, attention)).lower(out, q, k, v, b).compile()
            y, grads = step(out, q, k, v, b)
            errors = [
                jnp.linalg.norm(got[:8, : options.tokens].astype(jnp.float32) - want)
                / jnp.linalg.norm(want)
                for got, want in zip([y, *grads[:3]], expected[with_bias], strict=True)
            ]
            size = step.memory_analysis().temp_size_in_bytes / 2**30
            times = [
                milliseconds(f, *x) for f, x in ((forward, (q, k, v, b)), (step, (out, q, k, v, b)))
            ]
            print(
                f'{name:24}{times[0]:12.3f}{times[1]:12.3f}{size:8.2f}{max(errors):10.1e}',
                flush=True,
            )
        except Exception as error:  # a form that the device or the library refuses
            print(f'{name:24}  refused: {reason(error)}', flush=True)


if __name__ == '__main__':
    main()
