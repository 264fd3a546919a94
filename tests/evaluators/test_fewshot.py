"""Few-shot against closed forms in float64, scikit-learn and an explicit leave-one-out."""

import numpy as np
import pytest

from mim_jax import config
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, FewShot, fewshot
from tests.evaluators.processes import run_two
from tests.evaluators.splits import make_split


def standardised(rows, by):
    x, y = rows.astype(np.float64), by.astype(np.float64)
    return (x - y.mean(axis=0)) / y.std(axis=0) / np.sqrt(x.shape[1])


@pytest.mark.parametrize('count, width', [(30, 12), (20, 50)])
@pytest.mark.parametrize('l2', [1e-3, 1.0])
def test_ridge_is_the_closed_form_with_an_intercept(count, width, l2):
    train, test = make_split(0, count, width=width), make_split(1, 40, width=width)
    assert set(train.labels) == {0, 1, 2, 3}
    model = fewshot.fit(train.rows, train.labels, l2=(l2,))
    x = np.c_[standardised(train.rows, train.rows), np.ones(count)]
    penalty = l2 * np.diag([1.0] * width + [0.0])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ np.eye(4)[train.labels])
    expected = np.c_[standardised(test.rows, train.rows), np.ones(40)] @ weights
    np.testing.assert_allclose(model.scores(test.rows), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(model.classify(test.rows), expected.argmax(axis=1))


def test_ridge_equals_scikit_learn():
    from sklearn.linear_model import RidgeClassifier

    train, test = make_split(0, 60), make_split(1, 200)
    model = fewshot.fit(train.rows, train.labels, l2=(0.3,))
    peer = RidgeClassifier(alpha=0.3).fit(standardised(train.rows, train.rows), train.labels)
    expected = peer.predict(standardised(test.rows, train.rows))
    np.testing.assert_array_equal(model.classify(test.rows), expected)


@pytest.mark.parametrize('noise, width', [(0.3, 12), (2.5, 12), (2.5, 40)])
def test_the_penalty_with_the_smallest_leave_one_out_error(noise, width):
    train = make_split(2, 33, noise=noise, width=width)
    choices = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    x, y = standardised(train.rows, train.rows), np.eye(4)[train.labels]
    errors = []
    for l2 in choices:
        error = 0.0
        for i in range(len(x)):
            others = np.delete(np.arange(len(x)), i)
            a, b = x[others], y[others]
            kernel = np.linalg.solve(
                (a - a.mean(0)).T @ (a - a.mean(0)) + l2 * np.eye(width),
                (a - a.mean(0)).T @ (b - b.mean(0)),
            )
            error += np.sum((y[i] - b.mean(0) - (x[i] - a.mean(0)) @ kernel) ** 2)
        errors.append(error)
    chosen = fewshot.fit(train.rows, train.labels, l2=choices).l2
    assert chosen == choices[int(np.argmin(errors))]


def test_a_feature_that_never_changes_has_no_say():
    train, test = make_split(0, 30), make_split(1, 40)
    plain = fewshot.fit(train.rows, train.labels, l2=(0.1 * 12 / 13,))
    constant = np.full((30, 1), 0.1, np.float32)
    wide = fewshot.fit(np.c_[train.rows, constant], train.labels, l2=(0.1 * 12 / 13 * 12 / 13,))
    scores = wide.scores(np.c_[test.rows, np.full((40, 1), 7.0, np.float32)])
    np.testing.assert_allclose(scores, plain.scores(test.rows), rtol=1e-9)


def test_shots_are_drawn_from_each_class_and_nested():
    labels = np.random.default_rng(0).integers(5, size=200)
    many = fewshot.draw_shots(labels, shots=10, num_classes=5, seed=3)
    few = fewshot.draw_shots(labels, shots=4, num_classes=5, seed=3)
    np.testing.assert_array_equal(many[:, :4], few)
    assert all(set(labels[ids]) == {c} and len({*ids}) == 10 for c, ids in enumerate(many))
    assert not np.array_equal(few, fewshot.draw_shots(labels, shots=4, num_classes=5, seed=4))


def test_mean_and_interval_over_the_draws():
    train, test = make_split(0, 300), make_split(1, 90)
    result = dict(FewShot(shots=(1, 5), draws=4, l2=(0.5,)).run(train, test, num_classes=4))
    assert list(result) == ['top1_1shot', 'top1_1shot_ci95', 'top1_5shot', 'top1_5shot_ci95']
    for shots in (1, 5):
        accuracies = []
        for seed in range(4):
            ids = fewshot.draw_shots(train.labels, shots=shots, num_classes=4, seed=seed).ravel()
            model = fewshot.fit(train.rows[ids], train.labels[ids], l2=(0.5,))
            accuracies.append(np.mean(model.scores(test.rows).argmax(axis=1) == test.labels))
        assert result[f'top1_{shots}shot'] == pytest.approx(np.mean(accuracies))
        # Student's t with three degrees of freedom: 3.182 (from a table).
        expected = 3.182446 * np.std(accuracies, ddof=1) / 2
        assert result[f'top1_{shots}shot_ci95'] == pytest.approx(expected, rel=1e-5)
    assert 0.25 < result['top1_1shot'] < result['top1_5shot'] < 1
    one = dict(FewShot(shots=(5,), draws=1).run(train, test, num_classes=4))
    assert list(one) == ['top1_5shot']


def test_test_images_in_chunks(monkeypatch):
    train, test = make_split(0, 300), make_split(1, 90)
    whole = [*FewShot(shots=(3,)).run(train, test, num_classes=4)]
    monkeypatch.setattr(fewshot, 'ROWS', 7)
    assert [*FewShot(shots=(3,)).run(train, test, num_classes=4)] == whole


def test_too_few_images_and_wrong_fields_are_user_errors():
    train, test = make_split(0, 60), make_split(1, 30)
    with pytest.raises(UserError, match='needs 25 training images of every class, but there are'):
        list(FewShot().run(train, test, num_classes=4))
    with pytest.raises(UserError, match='3 classes'):
        list(FewShot().run(train, test, num_classes=3))
    assert EVALUATORS['fewshot'] is FewShot
    for section in (
        {'shots': ()},
        {'shots': (0,)},
        {'shots': (5, 5)},
        {'draws': 0},
        {'l2': (0.0,)},
        {'l2': ()},
        {'pool': 'max'},
    ):
        with pytest.raises(UserError, match='eval.fewshot'):
            config.build(FewShot, section, path='eval.fewshot')


def test_features_that_are_not_finite_are_one_sentence():
    train, test = make_split(0, 60), make_split(1, 30)
    test.rows[3, 2] = np.nan
    with pytest.raises(UserError, match='1 features of test images that are not finite'):
        list(FewShot().run(train, test, num_classes=4))


TWO_PROCESSES = """
from mim_jax.evaluators import FewShot
train, test = share(make_split(0, 150)), share(make_split(1, 61))
result = [*FewShot(shots=(2, 10)).run(train, test, num_classes=4)]
"""


def test_two_processes_equal_one():
    expected = [*FewShot(shots=(2, 10)).run(make_split(0, 150), make_split(1, 61), num_classes=4)]
    for result in run_two(TWO_PROCESSES):
        assert result == [list(pair) for pair in expected]
