"""Counted FLOPs against closed forms."""

import jax
import jax.numpy as jnp

from mim_jax.flops import matmul_flops


def count(fn, *shapes):
    return matmul_flops(jax.make_jaxpr(fn)(*(jnp.zeros(shape) for shape in shapes)))


def test_matrix_product():
    assert count(lambda a, b: a @ b, (3, 5, 7), (3, 7, 11)) == 2 * 3 * 5 * 7 * 11


def test_scan_counts_every_iteration_and_jit_its_inside():
    def stack(x, w):
        return jax.lax.scan(lambda x, w: (jax.jit(jnp.dot)(x, w), None), x, w)[0]

    assert count(stack, (4, 8), (6, 8, 8)) == 6 * 2 * 4 * 8 * 8


def test_gradient_of_a_layer_is_three_times_its_forward():
    def loss(w1, w2, x):
        return ((x @ w1) @ w2).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    # The input needs no gradient: 2 products forward, 3 backward.
    assert count(gradient, (8, 8), (8, 8), (4, 8)) == 5 * 2 * 4 * 8 * 8


def test_convolution():
    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    assert count(conv, (2, 6, 6, 3), (3, 3, 3, 5)) == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def test_branches_count_the_dearer_side():
    def branch(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x)

    assert count(branch, (4, 8), (8, 8)) == 2 * 2 * 4 * 8 * 8
