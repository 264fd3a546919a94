"""Every figure against a loop over tokens and pairs."""

import itertools

import numpy as np
import pytest

from mim_jax.pilot_study import figures

GRID = (2, 3)  # not square, so that a swap of rows and columns shows
CLASSES = 3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def neighbours(grid):
    """Pairs of places that touch."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    for (i, a), (j, b) in itertools.combinations(enumerate(places), 2):
        if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1:
            yield i, j


def test_the_reference_has_all_neighbours():
    assert sorted(neighbours((2, 2))) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert len(list(neighbours(GRID))) == 7


def test_cosines(rng):
    tokens = rng.normal(size=(2, 6, 4)).astype(np.float32)
    tokens[1, 2] = 0
    directions = rng.normal(size=(CLASSES, 4)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = np.asarray(figures.cosines(tokens, directions))
    for b, n, c in np.ndindex(2, 6, CLASSES):
        expected = 0 if (b, n) == (1, 2) else cosine(tokens[b, n], directions[c])
        assert found[b, n, c] == pytest.approx(expected, abs=1e-6)


def test_accuracy_and_class_similarity(rng):
    similarity = rng.normal(size=(4, 6, CLASSES)).astype(np.float32)
    predicted = rng.integers(CLASSES, size=(4, 6))
    labels = np.array([2, 0, 1, 2])
    right = [sum(predicted[b, n] == labels[b] for n in range(6)) / 6 for b in range(4)]
    own = [sum(similarity[b, n, labels[b]] for n in range(6)) / 6 for b in range(4)]
    np.testing.assert_allclose(figures.accuracy(predicted, labels), right, atol=1e-6)
    np.testing.assert_allclose(figures.class_similarity(similarity, labels), own, atol=1e-6)


def test_agreement(rng):
    predicted = rng.integers(CLASSES, size=(5, 6))
    predicted[4] = 1  # all the same
    touching = list(neighbours(GRID))
    pairs = list(itertools.combinations(range(6), 2))
    near = [sum(p[i] == p[j] for i, j in touching) / len(touching) for p in predicted]
    any_two = [sum(p[i] == p[j] for i, j in pairs) / len(pairs) for p in predicted]
    assert near[4] == any_two[4] == 1 and min(near) < 1
    found = figures.neighbour_agreement(predicted, grid=GRID)
    np.testing.assert_allclose(found, near, atol=1e-6)
    found = figures.pair_agreement(predicted, num_classes=CLASSES)
    np.testing.assert_allclose(found, any_two, atol=1e-6)


def test_the_chance_level_is_the_mean_over_random_places(rng):
    predicted = rng.integers(CLASSES, size=6)
    strewn = np.stack([p for p in set(itertools.permutations(predicted.tolist()))])
    expected = np.mean(
        [np.mean([p[i] == p[j] for i, j in neighbours(GRID)]) for p in strewn]
    )  # over every arrangement there is
    found = figures.pair_agreement(predicted[None], num_classes=CLASSES)[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_cosines_of_neighbours_and_of_pairs(rng):
    tokens = rng.normal(size=(3, 6, 4)).astype(np.float32)
    touching = list(neighbours(GRID))
    pairs = list(itertools.combinations(range(6), 2))
    near = [np.mean([cosine(t[i], t[j]) for i, j in touching]) for t in tokens]
    any_two = [np.mean([cosine(t[i], t[j]) for i, j in pairs]) for t in tokens]
    np.testing.assert_allclose(figures.neighbour_cosine(tokens, grid=GRID), near, atol=1e-6)
    np.testing.assert_allclose(figures.pair_cosine(tokens), any_two, atol=1e-6)


def test_a_token_of_norm_zero_has_cosine_zero_with_all(rng):
    tokens = rng.normal(size=(1, 6, 4)).astype(np.float32)
    tokens[0, 3] = 0
    pairs = list(itertools.combinations(range(6), 2))
    values = [0 if 3 in (i, j) else cosine(tokens[0, i], tokens[0, j]) for i, j in pairs]
    assert figures.pair_cosine(tokens)[0] == pytest.approx(np.mean(values), abs=1e-6)
