import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.morphing import average, morph


def example(seed, shape=(3, 12, 5)):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    # Numbers need not be dense: 7 groups at most, some empty.
    return x, rng.choice(shape[1], 7)[rng.integers(0, 7, shape[:2])].astype(np.int32)


def means(x, groups):
    result = np.empty(x.shape, np.float64)
    for image in range(len(x)):
        for token in range(x.shape[1]):
            result[image, token] = x[image][groups[image] == groups[image, token]].mean(axis=0)
    return result


@pytest.mark.parametrize('form', ['_average_segments', '_average_matmul'])
def test_every_token_becomes_its_groups_mean(form):
    x, groups = example(0)
    found = getattr(average, form)(jnp.asarray(x), jnp.asarray(groups))
    np.testing.assert_allclose(found, means(x.astype(np.float64), groups), atol=3e-7)


def test_the_form_for_accelerators_does_not_round_to_bfloat16():
    x, groups = example(1)
    x = x * 1000 + 0.123
    found = average._average_matmul(jnp.asarray(x), jnp.asarray(groups))
    np.testing.assert_allclose(found, means(x.astype(np.float64), groups), rtol=3e-6, atol=1e-3)


def test_result_is_float32_of_the_same_shape():
    x, groups = example(2)
    found = morph(jnp.asarray(x, jnp.bfloat16), groups)
    assert found.dtype == jnp.float32 and found.shape == x.shape
    expected = means(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64), groups)
    np.testing.assert_allclose(found, expected, atol=3e-7)


def test_blocks_of_tokens_are_averaged_each_by_itself():
    x, groups = example(2)
    blocks = np.stack([x, 2 * x], axis=1)
    found = morph(blocks, np.stack([groups, groups], axis=1))
    np.testing.assert_allclose(found[:, 0], morph(x, groups), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], 2 * morph(x, groups), rtol=1e-6)


def test_gradient_equals_that_of_the_averaging_matrix():
    x, groups = example(3)
    weights = np.random.default_rng(4).standard_normal(x.shape).astype(np.float32)
    same = groups[:, :, None] == groups[:, None, :]
    matrix = same / same.sum(axis=-1, keepdims=True)

    found = jax.grad(lambda x: jnp.sum(weights * morph(x, groups) ** 2))(x)
    outer = 2 * weights * np.einsum('bnm,bmd->bnd', matrix, x)
    expected = np.einsum('bnm,bnd->bmd', matrix, outer)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradient_keeps_the_dtype_of_the_prediction():
    x, groups = example(5)
    gradient = jax.grad(lambda x: morph(x, groups).sum())(jnp.asarray(x, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='groups'):
        morph(jnp.ones((2, 4, 3)), jnp.zeros((2, 5), jnp.int32))


@pytest.mark.parametrize('form', ['_sums_segments', '_sums_matmul'])
def test_sums_and_sizes_of_every_group(form):
    x, groups = example(6)
    sums, sizes = getattr(average, form)(jnp.asarray(x), jnp.asarray(groups))
    for image in range(3):
        for number in range(12):
            members = x[image].astype(np.float64)[groups[image] == number]
            assert sizes[image, number] == len(members)
            np.testing.assert_allclose(sums[image, number], members.sum(axis=0), atol=2e-6)
