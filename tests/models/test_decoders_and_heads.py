"""The MAE decoder and the heads."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models import Encoded, MAEDecoder, PooledClassifier, TokenHead
from mim_jax.models.decoders import unshuffle
from mim_jax.models.heads import LevelHeads, MLPHead, Projector, side_by_side


def test_unshuffle_puts_tokens_back_and_fills_the_rest():
    rng = np.random.default_rng(0)
    tokens, fill = rng.normal(size=(2, 3, 4)).astype(np.float32), np.arange(4.0)
    ids = np.array([[5, 0, 2], [1, 3, 4]])
    full = unshuffle(jnp.asarray(tokens), visible_ids=ids, fill=fill, num_tokens=6)
    expected = np.tile(fill, (2, 6, 1)).astype(np.float32)
    for b in range(2):
        for k in range(3):
            expected[b, ids[b, k]] = tokens[b, k]
    np.testing.assert_array_equal(full, expected)


def test_decoder_predicts_every_patch_whatever_the_order_of_the_visible_ones():
    decoder = MAEDecoder(width=16, depth=1, heads=2)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 3, 8)).astype(np.float32)
    ids = np.array([[5, 0, 2], [1, 3, 4]])
    shapes = jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), tokens, grid=(2, 3), features=5)
    )
    variables = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(s.dtype), shapes)
    call = {'grid': (2, 3), 'features': 5, 'class_token': rng.normal(size=(2, 8))}
    decode = jax.jit(lambda x, ids: decoder.apply(variables, x, visible_ids=ids, **call))
    prediction = decode(tokens, ids)
    chex.assert_shape(prediction, (2, 6, 5))
    assert prediction.dtype == jnp.float32
    turned = decode(tokens[:, ::-1], ids[:, ::-1])
    np.testing.assert_allclose(prediction, turned, atol=1e-5)


def test_token_head_is_one_matrix_product():
    head = TokenHead(5)
    tokens = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    params = head.init(jax.random.key(0), tokens)
    linear = params['params']['linear']
    np.testing.assert_allclose(
        head.apply(params, tokens), tokens @ linear['kernel'] + linear['bias'], atol=1e-5
    )


@pytest.mark.parametrize('bias', [True, False])
def test_mlp_head_normalises_by_the_batch(bias):
    head = MLPHead(7, 5, batch_norm=True, bias=bias)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 8)).astype(np.float32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), x)['params']
    assert [('bias' in shapes[name]) for name in ('fc1', 'fc2')] == [bias, bias]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    hidden = x @ params['fc1']['kernel'] + params['fc1'].get('bias', 0)
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    hidden = np.maximum(hidden * params['norm']['scale'] + params['norm']['bias'], 0)
    expected = hidden @ params['fc2']['kernel'] + params['fc2'].get('bias', 0)
    np.testing.assert_allclose(head.apply({'params': params}, x), expected, atol=2e-5)


@pytest.mark.parametrize('norm', ['batch', 'layer'])
def test_the_projectors_last_norm_has_no_scale(norm):
    activation = {'batch': 'relu', 'layer': 'gelu'}[norm]
    head = Projector((7, 6, 5), norm, activation, bias=norm == 'layer')
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    shapes = jax.eval_shape(head.init, jax.random.key(0), x)['params']
    params = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes)
    assert set(params) == {'fc1', 'norm1', 'fc2', 'norm2', 'fc3'}
    found = jax.jit(head.apply)({'params': params}, x)
    assert found.dtype == np.float32
    rows = np.float64(x).reshape(6, 8)
    axis, eps = {'batch': (0, 1e-5), 'layer': (1, 1e-6)}[norm]
    for i in (1, 2, 3):
        linear, affine = params[f'fc{i}'], params.get(f'norm{i}')
        assert ('bias' in linear) == (norm == 'layer')
        rows = rows @ linear['kernel'] + linear.get('bias', 0)
        mean, variance = rows.mean(axis, keepdims=True), rows.var(axis, keepdims=True)
        rows = (rows - mean) / np.sqrt(variance + eps)
        if affine:
            rows = rows * affine['scale'] + affine['bias']
            if activation == 'relu':
                rows = np.maximum(rows, 0)
            else:
                rows = rows * 0.5 * (1 + np.vectorize(math.erf)(rows / 2**0.5))
    np.testing.assert_allclose(found, rows.reshape(2, 3, 5), atol=1e-4)


@pytest.mark.parametrize('fusion', ['linear', 'sum', 'none'])
def test_level_heads_mix_the_blocks_and_project_each_level(fusion):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 3, 4, 8)).astype(np.float32)
    heads = LevelHeads((3, 4), 5, fusion=fusion)
    start = heads.init(jax.random.key(0), tokens)['params']
    kernel = start['heads']['linear']['kernel']
    assert kernel.shape == (2, 8, 5) and not np.allclose(kernel[0], kernel[1])
    bound = np.sqrt(6 / (8 + 5))  # Xavier's, of one level's layer
    assert 0.9 * bound < np.abs(kernel).max() < bound
    expected = {
        'linear': [[0.01, 0.01, 1.01, 0.01], [0.01, 0.01, 0.01, 1.01]],
        'sum': np.full((2, 4), 0.25),
        'none': [[0, 0, 1, 0], [0, 0, 0, 1]],
    }[fusion]
    if fusion == 'none':
        assert set(start) == {'heads'}
    else:
        np.testing.assert_allclose(start['fusion'], expected, rtol=1e-6)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
    weights = params.get('fusion', np.array(expected))
    found = heads.apply({'params': params}, tokens)
    assert found.shape == (2, 3, 2, 5) and found.dtype == jnp.float32
    linear = params['heads']['linear']
    for level in range(2):
        mixed = sum(weights[level, block] * tokens[:, :, block] for block in range(4))
        by_hand = mixed @ linear['kernel'][level] + linear['bias'][level]
        np.testing.assert_allclose(found[:, :, level], by_hand, atol=1e-4)


def test_stacked_layers_side_by_side():
    rng = np.random.default_rng(0)
    layers = {
        block: Encoded(rng.normal(size=(2, 3, 4)), class_token=rng.normal(size=(2, 4)))
        for block in (1, 2, 3)
    }
    stacked = Encoded(layers[3].tokens, layers=layers).stacked((2, 3))
    assert stacked.shape == (2, 4, 2, 4)
    joined = side_by_side(stacked)
    for image in range(2):
        for level, block in enumerate((2, 3)):
            own = layers[block]
            np.testing.assert_allclose(stacked[image, 0, level], own.class_token[image], rtol=1e-6)
            for n in range(3):
                part = joined[image, n, 4 * level : 4 * level + 4]
                np.testing.assert_allclose(stacked[image, 1 + n, level], part)
                np.testing.assert_allclose(part, own.tokens[image, n], rtol=1e-6)


def test_pooled_classifier():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 6, 8)).astype(np.float32)
    encoded = Encoded(tokens=tokens, class_token=tokens[:, 1])
    for pooling, pooled in (('mean', tokens.mean(axis=1)), ('class_token', tokens[:, 1])):
        head = PooledClassifier(10, pooling=pooling)
        params = head.init(jax.random.key(0), encoded)
        normed = pooled - pooled.mean(-1, keepdims=True)
        normed /= np.sqrt(normed.var(-1, keepdims=True) + 1e-6)
        kernel = np.asarray(params['params']['linear']['kernel'])
        assert 0 < np.abs(kernel).max() <= 0.02 * 0.001
        np.testing.assert_allclose(head.apply(params, encoded), normed @ kernel, atol=1e-8)
    with pytest.raises(ValueError, match='pooling'):
        PooledClassifier(10, pooling='max').init(jax.random.key(0), encoded)
