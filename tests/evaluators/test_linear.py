"""The linear probe against NumPy loops and scikit-learn; its choice, seeds and processes."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from mim_jax import config, keys
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, Linear, linear
from tests.evaluators.processes import run_two
from tests.evaluators.splits import make_split

QUICK = dict(epochs=30, warmup_epochs=3, batch_size=64)


def lars_by_loop(params, gradient_fn, learning_rates):
    """facebookresearch/mae, util/lars.py, with weight_decay 0: the params after each step."""
    momentum = {name: np.zeros_like(p) for name, p in params.items()}
    for learning_rate in learning_rates:
        gradients = gradient_fn(params)
        for name, p in params.items():
            step = gradients[name]
            if p.ndim > 1:
                norm, step_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(step**2))
                step = step * (0.001 * norm / step_norm if norm > 0 and step_norm > 0 else 1.0)
            momentum[name] = 0.9 * momentum[name] + step
            params = params | {name: p - learning_rate * momentum[name]}
    return params


def test_lars_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    start = {'kernel': generator.normal(size=(5, 3)), 'bias': generator.normal(size=3)}
    gradients = [{n: generator.normal(size=p.shape) for n, p in start.items()} for _ in range(6)]
    gradients[2]['kernel'][:] = 0
    rates = [0.0, 2.0, 30.0, 10.0, 5.0, 1.0]
    queue = iter(gradients)
    expected = lars_by_loop(start, lambda _: next(queue), rates)
    params = jax.tree.map(np.float32, start)
    optimizer = linear.lars()
    state = optimizer.init(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        updates, state = optimizer.update(jax.tree.map(np.float32, gradient), state, params)
        params = jax.tree.map(lambda p, u, rate=rate: p - rate * u, params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


def test_schedule():
    def expected(epoch, *, warmup, epochs, peak=1.0):
        # facebookresearch/mae, util/lr_sched.py, with min_lr 0.
        if epoch < warmup:
            return peak * epoch / warmup
        return peak * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))

    for epoch in (0, 0.5, 9.9, 10, 40.3, 89.9):
        found = linear.schedule(np.float32(epoch / 90), warmup=10 / 90)
        assert found == pytest.approx(expected(epoch, warmup=10, epochs=90), abs=1e-5)
    assert linear.schedule(np.float32(0), warmup=0.0) == 1


@pytest.mark.parametrize('batch_size', [8, 100])
def test_training_equals_a_plain_loop(batch_size):
    """Every learning rate by itself, one batch at a time, in float64."""
    split, rates, epochs, warmup = make_split(0, 30, width=6), (1.0, 40.0), 5, 2
    x, y = split.rows.astype(np.float64), np.eye(4)[split.labels]
    models = linear.fit(
        split.rows,
        split.labels,
        num_classes=4,
        learning_rates=rates,
        epochs=epochs,
        warmup_epochs=warmup,
        batch_size=batch_size,
        seed=3,
    )
    size = min(batch_size, 30)
    batches, factors, key = [], [], jax.random.key(3)
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(keys.named(key, 'order'), epoch), 30)
        for i in range(30 // size):
            batches.append(np.asarray(order)[i * size : (i + 1) * size])
            done = (epoch + i / (30 // size)) / epochs
            factors.append(float(linear.schedule(np.float32(done), warmup=warmup / epochs)))
    assert len(batches) == epochs * (3 if batch_size == 8 else 1)

    for i, rate in enumerate(rates):
        remaining = iter(batches)

        def gradients(params, remaining=remaining):
            ids = next(remaining)
            logits = x[ids] @ params['kernel'] + params['bias']
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = (p / p.sum(axis=1, keepdims=True) - y[ids]) / len(ids)
            return {'kernel': x[ids].T @ error, 'bias': error.sum(axis=0)}

        start = 0.01 * jax.random.normal(keys.named(key, 'kernel'), (6, 4))
        params = {'kernel': np.asarray(start, np.float64), 'bias': np.zeros(4)}
        expected = lars_by_loop(params, gradients, [rate * size / 256 * f for f in factors])
        for name, value in expected.items():
            np.testing.assert_allclose(models[name][i], value, rtol=2e-4, atol=1e-6)


def test_ranks():
    generator = np.random.default_rng(0)
    models = {
        'kernel': generator.normal(size=(3, 6, 4)).astype(np.float32),
        'bias': generator.normal(size=(3, 4)).astype(np.float32),
    }
    models['kernel'][2] = models['bias'][2] = 0  # all classes equal
    models['bias'][1, 3] = np.nan
    rows, labels = generator.normal(size=(2050, 6)).astype(np.float32), np.arange(2050) % 4
    found = linear.ranks(models, rows, labels.astype(np.int32))
    scores = rows @ models['kernel'][0] + models['bias'][0]
    expected = (scores > scores[np.arange(2050), labels][:, None]).sum(axis=1)
    np.testing.assert_array_equal(found[0], expected)
    assert (found[1] == 4).all()  # a classifier that diverged is never right
    np.testing.assert_array_equal(found[2], labels)


def test_accuracy_is_that_of_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    train, test = (make_split(seed, 1200, num_classes=9, noise=2.0) for seed in (0, 1))
    result = dict(Linear(**QUICK).run(train, test, num_classes=9))
    assert list(result) == ['top1', 'top5', 'holdout_top1', 'learning_rate']
    peer = LogisticRegression(max_iter=1000).fit(train.rows, train.labels)
    expected = peer.score(test.rows, test.labels)
    assert result['top1'] == pytest.approx(expected, abs=0.03) and 0.3 < expected < 0.8
    assert result['top1'] < result['top5'] < 1


def test_the_held_out_images_choose_and_do_not_train():
    train, test = make_split(0, 300), make_split(1, 100)
    probe = Linear(learning_rates=(1e-4, 30.0, 1e6), holdout=0.2, **QUICK)
    single = dataclasses.replace(probe, learning_rates=(30.0,))
    held, trained = probe._split(train)
    assert len(held.rows) == 60 and sorted([*held.numbers, *trained.numbers]) == [*train.numbers]
    figures, alone = (dict(x.run(train, test, num_classes=4)) for x in (probe, single))
    assert figures == alone and figures['learning_rate'] == 30.0
    assert figures['holdout_top1'] > 0.5 < figures['top1']
    # With wrong labels they choose another learning rate, but what is trained stays the same.
    train.labels[np.isin(train.numbers, held.numbers)] = 3 - held.labels
    wrong, again = (dict(x.run(train, test, num_classes=4)) for x in (probe, single))
    assert wrong['learning_rate'] != 30.0 and again['top1'] == alone['top1']


def test_the_held_out_images_choose_pooling_and_blocks():
    """Four recipes, of which the third tells the classes apart; the others are noise."""
    train, test = make_split(0, 300), make_split(1, 100)
    generator = np.random.default_rng(3)

    def with_noise(split):
        noise = [generator.normal(size=(len(split.rows), n)).astype(np.float32) for n in (4, 5, 6)]
        return dataclasses.replace(split, rows=noise[0], further=(noise[1], split.rows, noise[2]))

    rates = (1.0, 30.0)
    alone = dict(Linear(learning_rates=rates, **QUICK).run(train, test, num_classes=4))
    probe = Linear(learning_rates=rates, pools=('class', 'both'), blocks=(1, 4), **QUICK)
    assert [[(p.pooling, p.back) for p in recipe] for recipe in probe.recipes] == [
        [('class', 0)],
        [('class', 3), ('class', 2), ('class', 1), ('class', 0)],
        [('class', 0), ('mean', 0)],
        [('class', 3), ('class', 2), ('class', 1), ('class', 0), ('mean', 0)],
    ]
    found = dict(probe.run(with_noise(train), with_noise(test), num_classes=4))
    assert found == alone | {'pool': 1.0, 'blocks': 1.0} and alone['top1'] > 0.5
    blocks = Linear(learning_rates=rates, pool='class', blocks=(2, 4), **QUICK)
    two = [dataclasses.replace(x, rows=x.rows[:, :2], further=(x.rows,)) for x in (train, test)]
    found = dict(blocks.run(*two, num_classes=4))
    assert found == alone | {'blocks': 4.0}
    assert [len(recipe) for recipe in blocks.recipes] == [2, 4]


def test_features_of_any_scale_and_constant_ones():
    train, test = make_split(0, 300), make_split(1, 100)
    plain = dict(Linear(**QUICK).run(train, test, num_classes=4))
    for split in train, test:
        split.rows[:] = 1000 * split.rows + 5000
    assert dict(Linear(**QUICK).run(train, test, num_classes=4)) == pytest.approx(plain, abs=0.02)
    for split in train, test:
        split.rows[:] = 7.0
    assert 0.1 < dict(Linear(**QUICK).run(train, test, num_classes=4))['top1'] < 0.4


def test_seeds_and_one_compilation():
    train, test = make_split(0, 300), make_split(1, 100)
    first = dict(Linear(**QUICK).run(train, test, num_classes=4))
    programs = linear.fit._cache_size()
    assert dict(Linear(**QUICK).run(train, test, num_classes=4)) == first
    assert linear.fit._cache_size() == programs
    assert dict(Linear(seed=1, **QUICK).run(train, test, num_classes=4)) != first


def test_runs_inside_another_mesh():
    train, test = make_split(0, 300), make_split(1, 100)
    expected = dict(Linear(**QUICK).run(train, test, num_classes=4))
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        assert dict(Linear(**QUICK).run(train, test, num_classes=4)) == expected


def test_user_errors():
    train, test = make_split(0, 40), make_split(1, 10)
    with pytest.raises(UserError, match='2 classes'):
        list(Linear().run(train, test, num_classes=2))
    with pytest.raises(UserError, match='two training images'):
        list(Linear().run(train.select(np.array([0])), test, num_classes=4))
    assert EVALUATORS['linear'] is Linear
    for section in (
        {'learning_rates': ()},
        {'learning_rates': (0.0, 1.0)},
        {'epochs': 5, 'warmup_epochs': 5},
        {'batch_size': 0},
        {'holdout': 0.0},
        {'blocks': ()},
        {'blocks': (1, 0)},
        {'blocks': (1, 1)},
        {'pools': ('mean', 'mean')},
        {'pools': ('max',)},
        {'max_test': 0},
    ):
        with pytest.raises(UserError, match='eval.linear'):
            config.build(Linear, section, path='eval.linear')


def test_features_that_are_not_finite_are_one_sentence():
    train, test = make_split(0, 60), make_split(1, 30)
    test.rows[3, 2] = np.nan
    with pytest.raises(UserError, match='1 features of test images that are not finite'):
        list(Linear().run(train, test, num_classes=4))


TWO_PROCESSES = """
from mim_jax.evaluators import Linear
train, test = share(make_split(0, 300)), share(make_split(1, 61))
probe = Linear(epochs=30, warmup_epochs=3, batch_size=64)
result = [*probe.run(train, test, num_classes=4)]
"""


def test_two_processes_equal_one():
    expected = [*Linear(**QUICK).run(make_split(0, 300), make_split(1, 61), num_classes=4)]
    for result in run_two(TWO_PROCESSES):
        assert result == [list(pair) for pair in expected]
