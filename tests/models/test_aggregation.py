"""DMT-JEPA's aggregation against NumPy loops over images and patches."""

import jax
import numpy as np

from mim_jax.models.aggregation import Aggregation, alike_neighbours, window_places
from tests.models import reference

HEAD = Aggregation(heads=2)


def attended(query, memory, x, p):
    """x [S,D] plus what the query [D] gathers from itself and the memory, and the MLP."""
    normed = reference.norm(np.concatenate([query[None], memory]), p['norm1'])
    x = x + reference.cross_attention(normed[:1], normed, p['attention'])
    return x + reference.mlp(reference.norm(x, p['norm2']), p['mlp'])


def test_of_neighbours_and_of_all_tokens():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 12, 8)).astype('f')
    chosen = np.stack([rng.permutation(12)[:3] for _ in range(24)]).reshape(2, 12, 3)
    shapes = jax.eval_shape(HEAD.init, jax.random.key(0), tokens)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype('f'), shapes)
    assert set(variables['params']) == {'block1', 'block2', 'norm'}

    @jax.jit
    def both(tokens):
        return (
            HEAD.apply(variables, tokens),
            HEAD.apply(variables, tokens, chosen, method='around'),
        )

    pooled, around = both(tokens)
    params = jax.tree.map(np.float64, variables['params'])
    blocks = params['block1'], params['block2']
    for image, x in enumerate(np.float64(tokens)):
        for place, members in enumerate(chosen[image]):
            query = x.mean(axis=0)
            for p in blocks:
                query = attended(query, x[members], query[None], p)[0]
            expected = reference.norm(query, params['norm'])
            np.testing.assert_allclose(around[image, place], expected, atol=1e-4)
        for p in blocks:
            x = attended(x.mean(axis=0), x, x, p)
        np.testing.assert_allclose(pooled[image], reference.norm(x, params['norm']), atol=1e-4)


def test_neighbours_lie_in_a_window_that_goes_on_at_the_other_edge():
    places = window_places((4, 5), 3)
    assert places.shape == (20, 8)
    assert sorted(places[7]) == [1, 2, 3, 6, 8, 11, 12, 13]
    assert sorted(places[0]) == [1, 4, 5, 6, 9, 15, 16, 19]
    assert window_places((6, 5), 5).shape == (30, 24)


def test_the_most_alike_are_chosen():
    tokens = np.random.default_rng(1).normal(size=(3, 20, 6)).astype('f')
    found = np.asarray(alike_neighbours(tokens, grid=(4, 5), window=3, count=4))
    units = np.float64(tokens)
    units = units / np.linalg.norm(units, axis=-1, keepdims=True)
    for image in range(3):
        for place in range(20):
            row, column = divmod(place, 5)
            near = [
                (row + down) % 4 * 5 + (column + across) % 5
                for down in (-1, 0, 1)
                for across in (-1, 0, 1)
                if (down, across) != (0, 0)
            ]
            near.sort(key=lambda p: -units[image, p] @ units[image, place])  # noqa: B023
            assert set(found[image, place]) == set(near[:4])
