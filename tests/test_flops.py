"""Counted FLOPs against closed forms."""

import jax
import jax.numpy as jnp

from mim_jax.flops import matmul_flops, products
from mim_jax.models.vit import ViT


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


def test_products_say_where_they_stand_and_what_they_move():
    def layer(x, w):
        with jax.named_scope('layer'):
            return jax.lax.scan(lambda x, w: (jax.jit(jnp.dot)(x, w), None), x, w)[0]

    (product,) = products(jax.make_jaxpr(layer)(jnp.zeros((4, 8)), jnp.zeros((6, 8, 8))))
    assert product.path == 'layer/dot'
    assert product.moved == 6 * 4 * (4 * 8 + 8 * 8 + 4 * 8)


def test_squares_of_a_batched_product_stay_on_the_chip():
    q = jnp.zeros((2, 5, 3), jnp.bfloat16)
    (product,) = products(jax.make_jaxpr(lambda q: jnp.einsum('bqd,bkd->bqk', q, q))(q))
    assert product.moved == 2 * 2 * (2 * 5 * 3)


def test_a_loop_of_unknown_length_counts_as_it_is_told():
    def loop(n, x, w):
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1]

    jaxpr = jax.make_jaxpr(loop)(3, jnp.zeros((4, 8)), jnp.zeros((8, 8)))
    once = 2 * 4 * 8 * 8
    assert matmul_flops(jaxpr) == once
    assert sum(product.flops for product in products(jaxpr, loop_steps=7.5)) == 7.5 * once


def test_products_are_nearly_all_that_xla_counts():
    # Unrolled, since XLA counts a loop's body once. Norms, softmax and GELU are what it has beside.
    model = ViT(patch_size=(8, 8), width=256, depth=2, heads=4, scan=False)
    images = jnp.zeros((2, 64, 64, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(params):
        return model.apply(params, images).tokens.sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    counted = matmul_flops(traced.jaxpr)
    by_xla = traced.lower().cost_analysis()['flops']
    assert counted <= by_xla <= 1.05 * counted
