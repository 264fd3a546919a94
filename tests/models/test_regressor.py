"""CAE's latent regressor and decoder against NumPy loops over images, tokens and heads."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from mim_jax.models import ViT
from mim_jax.models.positions import sincos_table
from mim_jax.models.regressor import LatentRegressor, PlacedBlocks

ENCODER = ViT(width=8, heads=2, layer_scale=0.1, qkv_bias='qv', drop_path=0.4)
GRID = (2, 3)
VISIBLE, HIDDEN = np.array([[0, 4], [3, 5]]), np.array([[1, 2, 3, 5], [0, 1, 2, 4]])
TOKENS = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(np.float32)


def drawn(module, *arguments, **named):
    """Random parameters, none of them as they start."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, **named))['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes)


def norm(params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * params['scale'] + params['bias']


def mlp(params, x):
    x = x @ params['fc1']['kernel'] + params['fc1']['bias']
    x = x * (1 + erf(x / np.sqrt(2))) / 2
    return x @ params['fc2']['kernel'] + params['fc2']['bias']


def attention(query, key, value, out):
    """Of one image: query [Q,heads,d], key and value [S,heads,d] to [Q,D]."""
    total = np.zeros((len(query), out['kernel'].shape[-1])) + out['bias']
    for head in range(2):
        logits = np.exp(query[:, head] @ key[:, head].T / np.sqrt(query.shape[-1]))
        mixed = logits / logits.sum(axis=1, keepdims=True) @ value[:, head]
        total += mixed @ out['kernel'][head]
    return total


def project(x, kernel, bias=0):
    return np.einsum('sd,dhk->shk', x, kernel) + bias


def block_of(params, index):
    return jax.tree.map(lambda x: np.float64(x[index]), params['blocks'])


def test_the_regressor():
    module = LatentRegressor(ENCODER, GRID, depth=2)
    places = {'visible_ids': jnp.asarray(VISIBLE), 'hidden_ids': jnp.asarray(HIDDEN)}
    params = drawn(module, TOKENS, **places)
    found = jax.jit(module.apply)({'params': params}, TOKENS, **places)
    table = np.float64(sincos_table(GRID, 8).reshape(6, 8))
    for image in range(2):
        at_visible, at_hidden = table[VISIBLE[image]], table[HIDDEN[image]]
        x = np.tile(np.float64(params['mask_token']), (4, 1))
        for index in range(2):
            p = block_of(params, index)
            cross = p['cross_attention']
            assert set(cross['key']) == {'kernel'}  # no bias
            seen = np.concatenate([TOKENS[image], x])
            places = np.concatenate([at_visible, at_hidden])
            y = attention(
                project(norm(p['norm_query'], x + at_hidden), **cross['query']),
                project(norm(p['norm_key'], seen + places), **cross['key']),
                project(norm(p['norm_value'], seen), **cross['value']),
                cross['out'],
            )
            x = norm(p['norm'], x + p['layer_scale1'] * y)
            x = x + p['layer_scale2'] * mlp(p['mlp'], x)
        np.testing.assert_allclose(found[image], norm(params['norm'], x), atol=1e-4)


def test_the_decoder_sees_hidden_tokens_alone():
    module, tokens = PlacedBlocks(ENCODER, GRID, depth=1), np.tile(TOKENS, (1, 2, 1))
    params = drawn(module, tokens, jnp.asarray(HIDDEN))
    found = jax.jit(module.apply)({'params': params}, tokens, jnp.asarray(HIDDEN))
    p = block_of(params, 0)
    qkv, bias = p['attention']['qkv']['kernel'], p['attention']['qkv']['bias']
    for image in range(2):
        x = tokens[image] + sincos_table(GRID, 8).reshape(6, 8)[HIDDEN[image]]
        y = norm(p['norm1'], x)
        query, key, value = (
            project(y, qkv[:, i], b) for i, b in enumerate((bias[0], 0 * bias[0], bias[1]))
        )
        x = x + p['layer_scale1'] * attention(query, key, value, p['attention']['out'])
        x = x + p['layer_scale2'] * mlp(p['mlp'], norm(p['norm2'], x))
        np.testing.assert_allclose(found[image], norm(params['norm'], x), atol=1e-4)
