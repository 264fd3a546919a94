"""The codebook against plain NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.models.quantizer import Quantizer, nearest_code

RNG = np.random.default_rng(0)


def units(*shape):
    x = RNG.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_nearest_code_is_that_of_least_euclidean_distance():
    tokens, codes = units(5, 7, 4), units(6, 4)
    ids = np.asarray(nearest_code(3 * tokens, codes))  # their length does not matter
    for image, found in zip(tokens, ids, strict=True):
        for token, code in zip(image, found, strict=True):
            assert code == np.argmin(np.linalg.norm(codes - token, axis=1))


def means_by_hand(tokens, ids, codes):
    means, counts = codes.copy(), np.zeros(len(codes))
    for k in range(len(codes)):
        members = [t for t, i in zip(tokens, ids, strict=True) if i == k]
        counts[k] = len(members)
        if members:
            total = np.sum(members, axis=0)
            means[k] = total / np.linalg.norm(total)
    return means, counts


def test_codes_follow_the_averages_of_their_members_and_unused_ones_stay():
    quantizer = Quantizer(num_codes=5, width=3, decay=0.9)
    tokens, codes = units(20, 3), units(5, 3)
    ids = RNG.integers(0, 4, 20)  # nobody takes code 4
    usage = np.arange(5.0)
    book = {'codes': jnp.asarray(codes), 'usage': jnp.asarray(usage), 'ready': jnp.ones((), bool)}
    new = quantizer.update(book, tokens, ids)
    means, counts = means_by_hand(tokens, ids, codes)
    expected = 0.9 * codes + 0.1 * means
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(new['codes'], expected, atol=1e-6)
    np.testing.assert_allclose(new['codes'][4], codes[4], atol=1e-7)
    np.testing.assert_allclose(new['usage'], 0.9 * usage + 0.1 * counts, rtol=1e-6)


def test_the_first_batch_places_the_codes_by_spherical_k_means():
    quantizer = Quantizer(num_codes=4, width=3, kmeans_iterations=3)
    tokens, key = units(40, 3), jax.random.key(5)
    book = quantizer.init(jax.random.key(0))
    placed = jax.jit(quantizer.prepare)(book, tokens, key=key)
    codes = tokens[np.asarray(jax.random.choice(key, 40, (4,), replace=False))]
    for _ in range(3):
        ids = [int(np.argmax(codes @ token)) for token in tokens]
        codes, counts = means_by_hand(tokens, ids, codes)
    np.testing.assert_allclose(placed['codes'], codes, atol=1e-6)
    np.testing.assert_array_equal(placed['usage'], counts)
    assert bool(placed['ready']) and not bool(book['ready'])
    again = quantizer.prepare(placed, units(40, 3), key=key)
    np.testing.assert_array_equal(again['codes'], placed['codes'])


def test_fewer_tokens_than_codes():
    quantizer, tokens = Quantizer(num_codes=8, width=3), units(3, 3)
    placed = quantizer.prepare(quantizer.init(jax.random.key(0)), tokens, key=jax.random.key(1))
    assert bool(placed['ready'])
    # Every centre began as one of three tokens, and no token is nearer to another's.
    for code in np.asarray(placed['codes']):
        assert np.abs(tokens - code).sum(axis=1).min() < 1e-6
