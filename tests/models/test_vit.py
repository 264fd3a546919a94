"""The encoder: shapes, equal forms of one computation, and randomness per example."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models import ViT
from mim_jax.models.attention import attend
from mim_jax.models.blocks import attention_factors, drop_path_factors
from mim_jax.models.initializers import kernel_init

SMALL = ViT(patch_size=(4, 4), width=16, depth=2, heads=2)
FULL = dataclasses.replace(
    SMALL,
    num_registers=2,
    position='learned',
    relative_position='both',
    mask_token=True,
    layer_scale=0.1,
    drop_path=0.5,
    qkv_bias='qv',
    initialization='beit',
)
# A standard normal cut at one deviation has variance 1 - 2 phi(1) / (2 Phi(1) - 1).
BEIT_DEVIATION = 0.02 * np.sqrt(1 - 2 * 0.24197072 / 0.68268949)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 12, 3)).astype(np.float32)  # grid (2, 3)


@functools.partial(jax.jit, static_argnums=0, static_argnames='layers')
def encode(model, params, images, **options):
    return model.apply(params, images, **options)


@functools.cache
def params_of(model):
    """Random parameters, none of them zero, so that each has an effect; without compiling init."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.2, s.shape).astype(s.dtype), shapes)


def keys(count):
    return jax.random.split(jax.random.key(7), count)


def test_shapes_and_float32_parameters():
    params = params_of(FULL)
    encoded = encode(FULL, params, IMAGES, layers=(1, 2))
    chex.assert_shape(encoded.tokens, (4, 6, 16))
    chex.assert_shape(encoded.class_token, (4, 16))
    chex.assert_shape(encoded.registers, (4, 2, 16))
    assert set(encoded.layers) == {1, 2}
    for layer in encoded.layers.values():
        chex.assert_trees_all_equal_shapes(layer, encoded.replace(layers={}))
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'float32'}
    assert encoded.tokens.dtype == jnp.float32


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    half = dataclasses.replace(FULL, dtype='bfloat16')
    params = params_of(FULL)
    tokens = encode(half, params, IMAGES).tokens
    assert tokens.dtype == jnp.bfloat16
    made = jax.eval_shape(lambda: half.init(jax.random.key(0), IMAGES))
    assert {str(x.dtype) for x in jax.tree.leaves(made)} == {'float32'}
    full = encode(FULL, params, IMAGES).tokens
    assert jnp.abs(tokens.astype(jnp.float32) - full).mean() < 0.05


def test_every_block_has_its_own_parameters_on_the_leading_axis():
    params = params_of(FULL)['params']
    shapes = {k: v.shape for k, v in params['blocks']['attention']['qkv'].items()}
    assert shapes == {'kernel': (2, 16, 3, 2, 8), 'bias': (2, 2, 2, 8)}
    kernel = params['blocks']['mlp']['fc1']['kernel']
    assert not np.allclose(kernel[0], kernel[1])


def test_unrolled_and_rematerialised_blocks_compute_the_same():
    plain = dataclasses.replace(SMALL, relative_position='per_block', drop_path=0.5)
    params = params_of(plain)

    def loss(params, model):
        return (model.apply(params, IMAGES, drop_path_keys=keys(4)).tokens ** 2).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = both(params, plain)
    changed = dataclasses.replace(plain, scan=False, remat='full')
    other, other_gradient = both(params, changed)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    chex.assert_trees_all_close(gradient, other_gradient, atol=2e-4, rtol=1e-4)
    dots = encode(dataclasses.replace(plain, remat='dots'), params, IMAGES).tokens
    np.testing.assert_allclose(dots, encode(plain, params, IMAGES).tokens, atol=1e-5)


def test_all_patches_visible_equals_the_whole_image():
    params = params_of(FULL)
    ids = np.tile(np.arange(6), (4, 1))
    whole = encode(FULL, params, IMAGES)
    chosen = encode(FULL, params, IMAGES, visible_ids=ids)
    chex.assert_trees_all_close(whole, chosen, atol=1e-5)
    # In another order the tokens come in that order: positions travel with their patches.
    order = np.stack([np.random.default_rng(i).permutation(6) for i in range(4)])
    mixed = encode(FULL, params, IMAGES, visible_ids=order)
    expected = np.take_along_axis(np.asarray(whole.tokens), order[..., None], axis=1)
    np.testing.assert_allclose(mixed.tokens, expected, atol=1e-5)


def test_visible_tokens_do_not_see_the_hidden_patches():
    params = params_of(FULL)
    ids = np.array([[0, 4]] * 4)
    changed = IMAGES.copy()
    changed[:, :4, 4:] += 3.0  # patches 1 and 2
    before = encode(FULL, params, IMAGES, visible_ids=ids).tokens
    after = encode(FULL, params, changed, visible_ids=ids).tokens
    np.testing.assert_array_equal(before, after)


def test_mask_token_replaces_what_a_hidden_patch_showed_and_keeps_its_position():
    params = params_of(FULL)
    mask = np.zeros((4, 6), bool)
    mask[:, [1, 2]] = True
    changed = IMAGES.copy()
    changed[:, :4, 4:] += 3.0
    before = encode(FULL, params, IMAGES, mask=mask).tokens
    after = encode(FULL, params, changed, mask=mask).tokens
    np.testing.assert_array_equal(before, after)
    assert np.abs(before[:, 1] - before[:, 2]).max() > 1e-3


def test_parameters_given_as_numpy_arrays_are_left_as_they_are():
    learned = dataclasses.replace(SMALL, position='learned')
    params = params_of(learned)
    before = jax.tree.map(np.copy, params)
    learned.apply(params, IMAGES)
    chex.assert_trees_all_equal(params, before)


def test_a_mask_without_mask_token_is_refused():
    with pytest.raises(ValueError, match='mask_token=True'):
        SMALL.apply(params_of(SMALL), IMAGES, mask=np.ones((4, 6), bool))


def test_layers_are_the_outputs_of_shallower_models():
    params = params_of(SMALL)
    encoded = encode(SMALL, params, IMAGES, layers=(1, 2))
    cut = dataclasses.replace(SMALL, depth=1, final_norm=False)
    first = dict(params['params'])
    first['blocks'] = jax.tree.map(lambda x: x[:1], first['blocks'])
    expected = encode(cut, {'params': first}, IMAGES).tokens
    np.testing.assert_allclose(encoded.layers[1].tokens, expected, atol=1e-5)
    last = nn.LayerNorm(epsilon=1e-6).apply(
        {'params': params['params']['final_norm']}, encoded.layers[2].tokens
    )
    np.testing.assert_allclose(encoded.tokens, last, atol=1e-4)


def test_drop_path_draws_depend_on_the_examples_key_alone():
    params = params_of(FULL)
    whole = encode(FULL, params, IMAGES, drop_path_keys=keys(4)).tokens
    halves = [
        encode(FULL, params, IMAGES[i : i + 2], drop_path_keys=keys(4)[i : i + 2]).tokens
        for i in (0, 2)
    ]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-5)
    assert np.abs(whole - encode(FULL, params, IMAGES).tokens).max() > 1e-3


def test_drop_path_rates_rise_linearly_and_keep_the_mean():
    factors = np.asarray(drop_path_factors(keys(20000), rate=0.4, depth=3))
    chex.assert_shape(factors, (3, 2, 20000))
    for factor, rate in zip(factors, (0.0, 0.2, 0.4), strict=True):
        np.testing.assert_allclose(np.unique(factor[factor > 0]), 1 / (1 - rate), rtol=1e-6)
        # Standard error of the share is at most 0.0035 for each branch.
        np.testing.assert_allclose((factor == 0).mean(axis=-1), rate, atol=0.015)
    dropped = (factors[2] == 0).astype(float)
    assert abs(np.corrcoef(dropped)[0, 1]) < 0.03


def test_attention_dropout_is_of_weights_and_by_the_examples_key_alone():
    model = dataclasses.replace(SMALL, attention_dropout=0.4)
    params = params_of(model)
    plain = encode(SMALL, params, IMAGES).tokens
    # Without keys there is none; with them a batch and its parts draw the same.
    np.testing.assert_array_equal(encode(model, params, IMAGES).tokens, plain)
    whole = encode(model, params, IMAGES, drop_path_keys=keys(4)).tokens
    assert np.abs(whole - plain).max(axis=(1, 2)).min() > 1e-3
    turned = encode(model, params, IMAGES[::-1], drop_path_keys=keys(4)[::-1]).tokens
    np.testing.assert_allclose(turned[::-1], whole, atol=1e-5)


def test_attention_dropout_keeps_the_mean_and_differs_from_block_to_block():
    draws = [
        np.asarray(attention_factors(keys(50), i, rate=0.3, shape=(2, 20, 20))) for i in (0, 1)
    ]
    for factors in draws:
        np.testing.assert_allclose(np.unique(factors), [0, 1 / 0.7], rtol=1e-6)
        # Of 40,000 weights: the standard error of the share is 0.0023.
        np.testing.assert_allclose((factors == 0).mean(), 0.3, atol=0.01)
    assert abs(np.corrcoef(*(factors.reshape(-1) for factors in draws))[0, 1]) < 0.03
    q, k, v, factors = (
        np.random.default_rng(i).normal(size=size)
        for i, size in enumerate([(1, 3, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4), (1, 2, 3, 5)])
    )
    found = attend(*(jnp.float32(x) for x in (q, k, v)), factors=jnp.float32(factors))
    for head in range(2):
        logits = np.exp(q[0, :, head] @ k[0, :, head].T / 2)
        weights = logits / logits.sum(axis=1, keepdims=True) * factors[0, head]
        np.testing.assert_allclose(found[0, :, head], weights @ v[0, :, head], atol=1e-5)


def test_attention_dropout_needs_a_kernel_that_has_weights():
    with pytest.raises(ValueError, match="'cudnn' drops no weights: set attention_dropout to 0"):
        ViT(attention_kernel='cudnn', dtype='bfloat16', attention_dropout=0.1)


def test_beit_initialisation_shrinks_what_later_blocks_write():
    model = dataclasses.replace(SMALL, width=64, initialization='beit')
    blocks = model.init(jax.random.key(0), IMAGES)['params']['blocks']
    for block in range(2):
        expected = BEIT_DEVIATION / np.sqrt(2 * (block + 1))
        for kernel in (blocks['mlp']['fc2']['kernel'], blocks['attention']['out']['kernel']):
            np.testing.assert_allclose(np.std(kernel[block]), expected, rtol=0.05)
        fc1 = blocks['mlp']['fc1']['kernel'][block]
        np.testing.assert_allclose(np.std(fc1), BEIT_DEVIATION, rtol=0.05)
    assert np.abs(blocks['mlp']['fc1']['kernel']).max() <= 0.02
    assert not np.any(blocks['attention']['qkv']['bias'])


def test_mae_initialisation_is_xavier_uniform_over_the_whole_fused_kernel():
    qkv = kernel_init('mae')(jax.random.key(0), (64, 3, 2, 32))
    bound = np.sqrt(6 / (64 + 3 * 64))
    assert 0.98 * bound < np.abs(qkv).max() <= bound
    np.testing.assert_allclose(np.std(qkv), bound / np.sqrt(3), rtol=0.05)


def test_tables_are_interpolated_to_another_grid():
    params = params_of(FULL)
    larger = np.random.default_rng(2).normal(size=(1, 16, 16, 3)).astype(np.float32)
    tokens = encode(FULL, params, larger).tokens  # no grid stated: the table's own size counts
    stated = encode(dataclasses.replace(FULL, grid=(2, 3)), params, larger).tokens
    chex.assert_shape(tokens, (1, 16, 16))
    np.testing.assert_array_equal(tokens, stated)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'width': 18, 'heads': 4}, 'width 18 is not divisible by heads 4'),
        ({'position': 'rotary'}, 'position is .rotary., allowed: sincos, learned, none'),
        ({'patch_size': (4, 4, 3)}, 'patch_size'),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)
