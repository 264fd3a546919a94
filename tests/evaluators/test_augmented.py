"""LiDAR and alignment against plain loops and cases with a known answer."""

import math

import numpy as np
import pytest

from mim_jax import config
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, Augmented, Features
from tests.evaluators.processes import run_two


def made(count, views, width, *, seed=0, noise=0.5):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(count, 1, width)) * np.arange(1, width + 1)
    rows = centres + noise * generator.normal(size=(count, views, width))
    rows = rows.astype(np.float32).reshape(-1, width)
    return Features(rows, np.arange(len(rows), dtype=np.int32))


def lidar_by_loop(x, delta):
    """Thilak et al.: expectations over images and views, the matrix itself, its eigenvalues."""
    n, q, d = x.shape
    means = [sum(x[i, v] for v in range(q)) / q for i in range(n)]
    overall = sum(means) / n
    between, within = np.zeros((d, d)), np.zeros((d, d))
    for i in range(n):
        between += np.outer(means[i] - overall, means[i] - overall) / n
        for v in range(q):
            within += np.outer(x[i, v] - means[i], x[i, v] - means[i]) / (n * q)
    values, vectors = np.linalg.eigh(within + delta * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.svd(root @ between @ root, compute_uv=False)
    entropy = 0.0
    for value in eigenvalues:
        p = value / sum(eigenvalues) + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def alignment_by_loop(x):
    total, pairs = 0.0, 0
    for image in x:
        unit = [row / math.sqrt(sum(row**2)) for row in image]
        for i in range(len(unit)):
            for j in range(i):
                total += sum((unit[i] - unit[j]) ** 2)
                pairs += 1
    return total / pairs


@pytest.mark.parametrize('count, views, width', [(40, 5, 6), (5, 3, 9), (3, 2, 12)])
@pytest.mark.parametrize('delta', [1e-4, 0.3])
def test_equal_plain_loops(count, views, width, delta):
    features = made(count, views, width)
    found = dict(Augmented(views=views, delta=delta).run(features))
    x = features.rows.astype(np.float64).reshape(count, views, width)
    assert found['lidar'] == pytest.approx(lidar_by_loop(x, delta), rel=1e-6)
    assert found['alignment'] == pytest.approx(alignment_by_loop(x), rel=1e-6)
    assert 1 < found['lidar'] < min(count, width) + 0.01 and 0 < found['alignment'] < 4


def test_known_answers():
    # Every view alike: nothing is spread within an image, four directions between five of them.
    rows = np.repeat(np.eye(5, 8), 3, axis=0)
    same = dict(Augmented(views=3).run(Features(rows, np.arange(15, dtype=np.int32))))
    assert same['lidar'] == pytest.approx(4, rel=1e-4) and same['alignment'] == 0
    # Opposite views: the means are all zero.
    rows = np.repeat(np.eye(4), 2, axis=0) * np.array([1, -1] * 4)[:, None]
    opposite = dict(Augmented(views=2).run(Features(rows, np.arange(8, dtype=np.int32))))
    assert opposite == {'lidar': 1.0, 'alignment': pytest.approx(4)}


def test_images_with_a_missing_view_and_any_order_of_processes():
    features = made(9, 4, 6)
    kept = features.select(np.delete(np.arange(36), [5, 30, 31]))
    whole = features.select(~np.isin(features.numbers // 4, [1, 7]))
    found = dict(Augmented(views=4).run(kept))
    assert found == dict(Augmented(views=4).run(whole))
    order = np.random.default_rng(0).permutation(33)
    assert dict(Augmented(views=4).run(kept.select(order))) == found
    with pytest.raises(UserError, match='two images or more of which all views can be read, not 1'):
        list(Augmented(views=4).run(features.select(np.arange(7))))


def test_wrong_fields_are_told():
    assert EVALUATORS['augmented'] is Augmented
    for section in ({'views': 1}, {'delta': 0.0}, {'pool': 'max'}, {'max_train': 0}):
        with pytest.raises(UserError, match='eval.augmented'):
            config.build(Augmented, section, path='eval.augmented')
    bad = Features(np.full((4, 2), np.nan, np.float32), np.arange(4, dtype=np.int32))
    with pytest.raises(UserError, match='not finite'):
        list(Augmented(views=2).run(bad))


TWO_PROCESSES = """
from mim_jax.evaluators import Augmented
from tests.evaluators.test_augmented import made
result = [*Augmented(views=5).run(share(made(40, 5, 6)))]
"""


def test_two_processes_equal_one():
    expected = [list(pair) for pair in Augmented(views=5).run(made(40, 5, 6))]
    for result in run_two(TWO_PROCESSES):
        assert result == expected
