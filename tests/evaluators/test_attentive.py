"""The attentive probe: what it finds, what chooses, seeds and processes. (Its training against
PyTorch: tests/parity/test_attentive.py.)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import config
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, Attentive, Features, Linear, attentive, linear
from mim_jax.models import AttentivePool
from tests.evaluators.processes import run_two

QUICK = dict(epochs=25, warmup_epochs=2, batch_size=32, learning_rates=(0.3, 1.0))


def hidden(seed, count, *, tokens=6, width=8, num_classes=3):
    """One token of each image, marked and at any place, says its class; their mean hardly does."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=count).astype(np.int32)
    rows = generator.normal(size=(count, tokens, width))
    rows[..., :num_classes] *= 3
    place = generator.integers(tokens, size=count)
    rows[np.arange(count), place] = 0.3 * generator.normal(size=(count, width))
    rows[np.arange(count), place, labels] += 3
    rows[np.arange(count), place, -1] += 6
    return Features(rows.astype(np.float32), np.arange(count, dtype=np.int32), labels)


def averaged(features):
    return dataclasses.replace(features, rows=features.rows.mean(axis=1))


def test_it_finds_what_the_mean_hides():
    train, test = hidden(0, 600), hidden(1, 200)
    found = dict(Attentive(**QUICK).run(train, test, num_classes=3))
    assert list(found) == ['top1', 'holdout_top1', 'learning_rate']
    probe = Linear(epochs=25, warmup_epochs=2, batch_size=32)
    mean = dict(probe.run(averaged(train), averaged(test), num_classes=3))
    assert found['top1'] > 0.9 > 0.75 > mean['top1'], (found, mean)


def test_judged_by_the_statistics_of_the_images_trained_on(monkeypatch):
    """The ranks of each image, one by one, in float64."""
    monkeypatch.setattr(attentive, 'ROWS', 7)
    train, test = hidden(0, 60), hidden(1, 25)
    pool = AttentivePool(heads=2)
    options = dict(num_classes=3, epochs=3, warmup_epochs=0, batch_size=16, seed=0)
    ids = np.arange(0, 60, 2)
    probes = attentive.fit(
        pool, train.rows, train.labels, ids=ids, learning_rates=(1.0, 3.0), **options
    )
    pooled = attentive.pooled(pool, probes['pool'], train.rows, ids)
    statistics = [linear.standardisation(rows, epsilon=1e-5) for rows in pooled]
    found = attentive.ranks(pool, probes, statistics, test.rows, test.labels)
    for i in range(2):
        probe = jax.tree.map(lambda x, i=i: x[i], probes)
        apply = {'params': probe['pool']}
        x = np.float64([pool.apply(apply, train.rows[n : n + 1])[0] for n in ids])
        np.testing.assert_allclose(pooled[i], x, rtol=1e-4, atol=1e-6)
        y = np.float64([pool.apply(apply, row[None])[0] for row in test.rows])
        normed = (y - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        scores = normed @ np.float64(probe['kernel']) + np.float64(probe['bias'])
        expected = (scores > scores[np.arange(25), test.labels][:, None]).sum(axis=1)
        np.testing.assert_array_equal(found[i], expected)


def test_the_held_out_images_choose_and_do_not_train():
    train, test = hidden(0, 200), hidden(1, 80)
    probe = Attentive(**QUICK | {'learning_rates': (1e-5, 1.0, 1e6)})
    single = dataclasses.replace(probe, learning_rates=(1.0,))
    figures, alone = (dict(x.run(train, test, num_classes=3)) for x in (probe, single))
    assert figures == pytest.approx(alone) and figures['learning_rate'] == 1.0
    held, _ = linear.hold_out(200, holdout=0.1, seed=0)
    train.labels[held] = (train.labels[held] + 1) % 3
    wrong, again = (dict(x.run(train, test, num_classes=3)) for x in (probe, single))
    assert wrong['learning_rate'] != 1.0 and again['top1'] == alone['top1']


def test_seeds_one_compilation_any_mesh_and_half_precision():
    train, test = hidden(0, 120), hidden(1, 50)
    for split in train, test:  # so that there is something left to chance
        split.labels[::3] = (split.labels[::3] + 1) % 3
    first = dict(Attentive(**QUICK).run(train, test, num_classes=3))
    programs = attentive._step._cache_size(), attentive._pooled._cache_size()
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        assert dict(Attentive(**QUICK).run(train, test, num_classes=3)) == first
    assert (attentive._step._cache_size(), attentive._pooled._cache_size()) == programs
    other = dict(Attentive(seed=1, **QUICK).run(train, test, num_classes=3))
    assert other != first
    half = [hidden(seed, count) for seed, count in ((0, 120), (1, 50))]
    half = [dataclasses.replace(x, rows=x.rows.astype(jnp.bfloat16)) for x in half]
    assert dict(Attentive(**QUICK).run(*half, num_classes=3))['top1'] > 0.9


def test_user_errors():
    train, test = hidden(0, 40), hidden(1, 10)
    with pytest.raises(UserError, match='3 heads do not divide tokens of width 8'):
        list(Attentive(heads=3).run(train, test, num_classes=3))
    with pytest.raises(UserError, match='two training images'):
        list(Attentive().run(train.select(np.array([0])), test, num_classes=3))
    with pytest.raises(UserError, match='2 classes'):
        list(Attentive().run(train, test, num_classes=2))
    test.rows[0, 0, 0] = np.inf
    with pytest.raises(UserError, match='not finite'):
        list(Attentive().run(train, test, num_classes=3))
    assert EVALUATORS['attentive'] is Attentive
    for section in (
        {'heads': 0},
        {'learning_rates': ()},
        {'epochs': 5, 'warmup_epochs': 5},
        {'holdout': 1.0},
        {'max_gigabytes': 0.0},
        {'max_test': 0},
    ):
        with pytest.raises(UserError, match='eval.attentive'):
            config.build(Attentive, section, path='eval.attentive')


TWO_PROCESSES = """
from mim_jax.evaluators import Attentive
from tests.evaluators.test_attentive import QUICK, hidden
train, test = share(hidden(0, 120)), share(hidden(1, 51))
result = [*Attentive(**QUICK).run(train, test, num_classes=3)]
"""


@pytest.mark.slow
def test_two_processes_equal_one():
    expected = [*Attentive(**QUICK).run(hidden(0, 120), hidden(1, 51), num_classes=3)]
    for result in run_two(TWO_PROCESSES):
        assert result == [list(pair) for pair in expected]
