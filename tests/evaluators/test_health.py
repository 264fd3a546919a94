"""Representation health against plain loops and cases with a known answer."""

import math

import numpy as np
import pytest

from mim_jax import config
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, Features, Health, health
from tests.evaluators.processes import run_two
from tests.evaluators.splits import make_split


def features(rows):
    rows = np.asarray(rows, np.float32)
    return Features(rows, np.arange(len(rows), dtype=np.int32))


def rankme_by_loop(rows):
    """Garrido et al., section 3."""
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    entropy = 0.0
    for value in values:
        p = value / sum(abs(v) for v in values) + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def uniformity_by_loop(rows):
    """Wang and Isola: log of the mean Gaussian potential of the pairs i < j, t = 2."""
    x = [row / math.sqrt(sum(row**2)) for row in rows.astype(np.float64)]
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return math.log(sum(math.exp(-2 * sum((x[i] - x[j]) ** 2)) for i, j in pairs) / len(pairs))


@pytest.mark.parametrize('count, width', [(60, 12), (10, 12), (9, 40)])
def test_equal_plain_loops(monkeypatch, count, width):
    monkeypatch.setattr(health, 'ROWS', 7)
    split = make_split(0, count, width=width)
    result = dict(Health().run(split))
    assert result['rankme'] == pytest.approx(rankme_by_loop(split.rows), rel=1e-5)
    assert result['uniformity'] == pytest.approx(uniformity_by_loop(split.rows), rel=1e-5)


def test_known_answers():
    orthogonal = dict(Health().run(features(3 * np.eye(5))))
    # Five equal singular values; every pair at a squared distance of 2.
    assert orthogonal['rankme'] == pytest.approx(5, rel=1e-4)
    assert orthogonal['uniformity'] == pytest.approx(-4)
    collapsed = dict(Health().run(features(np.ones((20, 6)))))
    assert collapsed['rankme'] == pytest.approx(1, abs=1e-4)
    assert collapsed['uniformity'] == pytest.approx(0, abs=1e-5)
    assert dict(Health().run(features(np.zeros((20, 6)))))['rankme'] == 1
    opposite = dict(Health().run(features([[1, 0], [-1, 0]])))
    assert opposite['uniformity'] == pytest.approx(-8)


def test_section_and_too_few_images():
    assert EVALUATORS['health'] is Health
    with pytest.raises(UserError, match='two images'):
        list(Health().run(features(np.ones((1, 6)))))
    with pytest.raises(UserError, match='2 features of training images that are not finite'):
        list(Health().run(features([[1, np.inf], [np.nan, 0], [1, 1]])))
    with pytest.raises(UserError, match='eval.health'):
        config.build(Health, {'pool': 'max'}, path='eval.health')


TWO_PROCESSES = """
from mim_jax.evaluators import Health
result = [*Health().run(share(make_split(0, 61)))]
"""


def test_two_processes_equal_one():
    expected = dict(Health().run(make_split(0, 61)))
    for result in run_two(TWO_PROCESSES):
        assert dict(result) == pytest.approx(expected, rel=1e-6)
