"""Blocks in NumPy, float64, one image and one head at a time."""

import numpy as np
from scipy.special import erf

from mim_jax.models import patch_grid, patchify
from mim_jax.models.positions import sincos_table


def norm(x, params=None, eps=1e-6):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x if params is None else x * params['scale'] + params['bias']


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def linear(x, params):
    return x @ params['kernel'] + params['bias']


def embed(model, params, image, visible=None):
    """Tokens [S,D] that enter the first block: class token, registers, patches."""
    x = linear(
        np.float64(patchify(image[None], patch_size=model.patch_size)[0]), params['patch_embed']
    )
    x += sincos_table(patch_grid(image.shape[:2], model.patch_size), model.width).reshape(x.shape)
    x = x if visible is None else x[visible]
    return np.concatenate([params['class_token'][None], params['registers'], x])


def mlp(x, params):
    h = linear(x, params['fc1'])
    return linear(h * (1 + erf(h / np.sqrt(2))) / 2, params['fc2'])


def attend(q, k, v, out, bias):
    """Tokens [Q,D] and weights [heads,Q,S] from q [Q,heads,d], k and v [S,heads,d]."""
    y, weights = out['bias'], []
    for head in range(q.shape[1]):
        logits = q[:, head] @ k[:, head].T / np.sqrt(q.shape[-1])
        weights.append(softmax(logits + (0 if bias is None else bias[head])))
        y = y + weights[-1] @ v[:, head] @ out['kernel'][head]
    return y, np.stack(weights)


def self_attention(x, params, bias=None):
    """Tokens, weights [heads,S,S], queries and keys [S,heads,d]."""
    rows = params['qkv']['bias']
    if len(rows) == 2:
        rows = np.stack([rows[0], 0 * rows[0], rows[1]])
    kernel = params['qkv']['kernel']
    q, k, v = (np.tensordot(x, kernel[:, i], 1) + rows[i] for i in range(3))
    return *attend(q, k, v, params['out'], bias), q, k


def cross_attention(x, memory, params, bias=None):
    q, k, v = (
        np.tensordot(of, params[name]['kernel'], 1) + params[name].get('bias', 0)
        for name, of in (('query', x), ('key', memory), ('value', memory))
    )
    return attend(q, k, v, params['out'], bias)[0]


def block(x, p, *, bias=None, condition=None, between=lambda x: x):
    """x [S,D] after a block, and its attention weights, queries and keys."""
    adapted = np.array([[0.0, 0.0, 1.0]] * 2)[..., None]
    if condition is not None:
        silu = condition / (1 + np.exp(-condition))
        adapted = np.tensordot(silu, p['modulation']['kernel'], 1) + p['modulation']['bias']
    (shift1, scale1, gate1), (shift2, scale2, gate2) = adapted
    y, weights, q, k = self_attention(
        norm(x, p.get('norm1')) * (1 + scale1) + shift1, p['attention'], bias
    )
    x = between(x + p.get('layer_scale1', 1) * gate1 * y)
    y = mlp(norm(x, p.get('norm2')) * (1 + scale2) + shift2, p['mlp'])
    return x + p.get('layer_scale2', 1) * gate2 * y, weights, q, k


def cross_block(x, memory, p):
    x = x + self_attention(norm(x, p['norm1']), p['attention'])[0]
    memory = norm(memory, p['norm_memory'])
    x = x + cross_attention(norm(x, p['norm2']), memory, p['cross_attention'])
    return x + mlp(norm(x, p['norm3']), p['mlp'])
