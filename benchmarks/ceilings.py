"""What the device at hand can do: matrix products and copies, the ceilings of every other figure.

python benchmarks/ceilings.py [--size=8192] [--copy_gib=4]
"""

import argparse

import jax
import jax.numpy as jnp
from timing import milliseconds


def matmul_rate(size, dtype):
    """TFLOP/s of a square product of random matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(dtype)
    return 2e-9 * size**3 / milliseconds(jax.jit(jnp.matmul), a, b)


def copy_rate(gib):
    """GB/s of an array written from another, bytes read plus bytes written."""
    x = jax.random.normal(jax.random.key(0), (int(gib * 2**28),), jnp.float32)
    return 2e-6 * x.nbytes / milliseconds(jax.jit(lambda x: -x), x)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=8192)
    parser.add_argument('--copy_gib', type=float, default=4.0)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}', flush=True)
    for dtype in ('bfloat16', 'float32'):
        rate = matmul_rate(options.size, dtype)
        print(f'{options.size}^3 {dtype} product: {rate:.1f} TFLOP/s', flush=True)
    print(f'copy of {options.copy_gib:g} GiB: {copy_rate(options.copy_gib):.0f} GB/s', flush=True)


if __name__ == '__main__':
    main()
