"""Attentive pooling against multi-head attention written out, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.pooling import AttentivePool

WIDTH, HEADS = 12, 3


def drawn(seed=0):
    """Parameters in which nothing is zero or one."""
    module = AttentivePool(HEADS)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, WIDTH)))['params']
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0.3, 0.7, s.shape).astype(np.float32), shapes)


def norm(x, scale, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale + bias


def by_hand(params, tokens):
    """CAE's AttentiveBlock for one image [N,D], in float64: every token projected."""
    p = jax.tree.map(np.float64, params)
    attention, size = p['attention'], WIDTH // HEADS
    query = norm(p['query'], **p['norm_query'])
    # The bias of the keys' norm is one more parameter there, and cannot matter.
    keys = [norm(t, p['norm_key']['scale'], 0.4) for t in tokens]
    values = [norm(t, **p['norm_value']) for t in tokens]
    out = p['attention']['out']['bias'].copy()
    for head in range(HEADS):
        q = query @ attention['query']['kernel'][:, head] + attention['query']['bias'][head]
        k = [x @ attention['key']['kernel'][:, head] for x in keys]
        v = [
            x @ attention['value']['kernel'][:, head] + attention['value']['bias'][head]
            for x in values
        ]
        logits = np.array([q @ row / np.sqrt(size) for row in k])
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        mixed = sum(w * row for w, row in zip(weights, v, strict=True))
        out += mixed @ attention['out']['kernel'][head]
    return out


def test_equals_attention_written_out():
    params = drawn()
    tokens = np.random.default_rng(1).normal(1.0, 2.0, (4, 7, WIDTH)).astype(np.float32)
    found = AttentivePool(HEADS).apply({'params': params}, tokens)
    expected = np.stack([by_hand(params, image.astype(np.float64)) for image in tokens])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    half = AttentivePool(HEADS, dtype='bfloat16').apply({'params': params}, tokens)
    np.testing.assert_allclose(half, expected, atol=0.03 * np.abs(expected).max())


def test_fresh_attention_is_uniform_and_learns_in_its_first_step():
    tokens = np.random.default_rng(1).normal(size=(2, 7, WIDTH)).astype(np.float32)
    module = AttentivePool(HEADS)
    params = module.init(jax.random.key(0), tokens)['params']
    order = np.random.default_rng(2).permutation(7)
    pooled = module.apply({'params': params}, tokens)
    np.testing.assert_allclose(
        pooled, module.apply({'params': params}, tokens[:, order]), atol=1e-6
    )
    x = (tokens - tokens.mean(-1, keepdims=True)) / tokens.std(-1, keepdims=True)
    value, out = (params['attention'][name]['kernel'] for name in ('value', 'out'))
    expected = np.einsum('bd,dhk,hke->be', x.mean(axis=1), value, out)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    gradient = jax.grad(lambda p: (module.apply({'params': p}, tokens) ** 2).sum())(params)
    assert np.abs(gradient['norm_query']['bias']).max() > 0 < np.abs(gradient['query']).max()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match='5 heads do not divide tokens of width 12'):
        AttentivePool(5).init(jax.random.key(0), jnp.zeros((1, 7, WIDTH)))
