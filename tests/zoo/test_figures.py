"""What is read of a run, and when its features count as moved."""

import math

import numpy as np
import pytest

from mim_jax.zoo.figures import ERRORS, Figures, moved, read, standard_error, verdict


def test_figures_are_those_of_the_first_and_the_last_line():
    judged = ('eval/knn/top1', 'eval/linear/top1', 'eval/health/rankme')
    lines = [
        dict(zip(('step', *judged), (0, 0.1, 0.2, 3.0), strict=True)),
        {'step': 10, 'train/loss': 4.0, 'speed/images_per_second': 9.0},
        {'step': 20, 'train/loss': 9.0, 'speed/images_per_second': 50.0},
        {'step': 20, 'eval/knn/top1': 0.9},
        {'step': 30, 'train/loss': 2.0, 'speed/images_per_second': 60.0},
        dict(zip(('step', *judged), (30, 0.3, 0.4, 5.0), strict=True)),
    ]
    assert read(lines, total=30) == Figures((4.0, 2.0), (0.1, 0.3), (0.2, 0.4), (3.0, 5.0), 50.0)


def test_the_standard_error_is_that_of_two_independent_draws():
    assert standard_error((0.5, 0.5), 100) == pytest.approx(math.sqrt(0.5) / 10)
    draws = np.random.default_rng(0).binomial(500, [[0.1], [0.3]], (2, 20_000)) / 500
    assert standard_error((0.1, 0.3), 500) == pytest.approx(np.std(draws[1] - draws[0]), rel=0.02)


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_shares_that_stay_are_hardly_ever_said_to_move(share):
    draws = np.random.default_rng(1).binomial(2048, share, (4000, 2)) / 2048
    told = np.mean([moved(tuple(pair), 2048) != 0 for pair in draws])
    assert told < 0.006  # 0.0027 of a normal deviate lie beyond three


def test_moved_by_more_than_so_many_errors():
    below, above = (0.1, 0.1 + 0.0294), (0.1, 0.1 + 0.0302)  # an error is about 0.0099
    assert ERRORS == 3 and standard_error(above, 2048) == pytest.approx(0.00992, abs=1e-4)
    assert moved(below, 2048) == 0 and moved(above, 2048) == 1
    assert moved(above[::-1], 2048) == -1
    assert moved(above, 200) == 0  # fewer images tell less


def test_a_verdict_is_of_both_evaluators():
    still, up, down = (0.1, 0.1), (0.1, 0.4), (0.4, 0.1)

    def of(knn, linear):
        figures = Figures((1, 1), knn, linear, (1, 1), 1)
        return verdict(figures, knn_images=2048, linear_images=2048)

    assert of(still, still) == 'not moved'
    assert of(up, still) == of(still, up) == of(up, up) == 'better'
    assert of(down, still) == of(down, down) == 'worse'
    assert of(up, down) == of(down, up) == 'mixed'
