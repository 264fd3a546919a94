"""Schedules against their formulas, AdamW against a NumPy loop, layer decay and clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.optimizers import (
    OptimizerConfig,
    make_decay_schedule,
    make_optimizer,
    make_schedule,
    trained,
)
from mim_jax.parameter_rules import constant_rates

CLOCK = Clock(batch_size=1024, epoch_examples=1024, total_steps=100)


def test_cosine_with_linear_scaling_is_maes_formula():
    config = OptimizerConfig(learning_rate=1.5e-4, reference_batch=256, warmup_epochs=10.0)
    schedule = make_schedule(config, CLOCK)
    peak = 1.5e-4 * 1024 / 256
    for step in (0, 3, 10, 55, 99):
        if step < 10:
            expected = peak * step / 10
        else:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-10)


def test_square_root_scaling_and_end_rate():
    config = OptimizerConfig(
        learning_rate=1.5e-3, scaling='sqrt', reference_batch=2048, end_learning_rate=1e-5
    )
    schedule = make_schedule(config, CLOCK)
    np.testing.assert_allclose(schedule(0), 1.5e-3 * math.sqrt(1024 / 2048), rtol=1e-6)
    np.testing.assert_allclose(schedule(100), 1e-5, rtol=1e-4)


def test_multistep_as_simmim():
    config = OptimizerConfig(
        learning_rate=1e-4,
        reference_batch=512,
        schedule='multistep',
        decay_percent=(87.5,),
        warmup_steps=10,
        warmup_learning_rate=5e-7,
        scale_ends=True,
    )
    schedule = make_schedule(config, Clock(1024, None, 80))
    np.testing.assert_allclose(schedule(0), 2 * 5e-7, rtol=1e-5)
    np.testing.assert_allclose(schedule(10), 2e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(69), 2e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(71), 2e-5, rtol=1e-5)


def test_linear_decay_is_mmcvs_poly_with_its_linear_warm_up():
    """The warm-up is a factor on a rate that falls from the first step on."""
    config = OptimizerConfig(
        learning_rate=5e-5,
        scaling='none',
        schedule='linear',
        warmup_steps=15,
        warmup_learning_rate=5e-11,
        end_learning_rate=1e-6,
    )
    schedule = make_schedule(config, CLOCK)
    for step in (0, 4, 14, 15, 60, 100):
        regular = (5e-5 - 1e-6) * (1 - step / 100) + 1e-6
        missing = (1 - step / 15) * (1 - 1e-6) if step < 15 else 0.0
        expected = regular * (1 - missing)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-11)
    plain = OptimizerConfig(learning_rate=1.0, scaling='none', schedule='linear')
    np.testing.assert_allclose(make_schedule(plain, CLOCK)(25), 0.75, rtol=1e-6)


def test_with_a_horizon_the_run_ends_in_the_midst_of_its_schedule():
    """CroCo: a schedule of 800 epochs, stopped at 400; the warm-up keeps its own length."""
    config = OptimizerConfig(learning_rate=1.5e-4, warmup_epochs=10.0, horizon=2.0)
    schedule = make_schedule(config, CLOCK)
    peak = 1.5e-4 * 1024 / 256
    for step in (0, 5, 10, 60, 100):
        if step < 10:
            expected = peak * step / 10
        else:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (step - 10) / 190))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-10)
    steps = OptimizerConfig(
        learning_rate=1.0, scaling='none', schedule='multistep', decay_percent=(40.0,), horizon=2.0
    )
    found = [float(make_schedule(steps, CLOCK)(step)) for step in (79, 81)]
    np.testing.assert_allclose(found, [1.0, 0.1])


def test_adamw_equals_a_plain_loop():
    config = OptimizerConfig(
        learning_rate=0.01,
        scaling='none',
        schedule='constant',
        beta2=0.9,
        weight_decay=0.1,
        clip_norm=1.0,
        layer_decay=0.5,
    )
    params = {'w': jnp.array([[1.0, -2.0]]), 'b': jnp.array([0.5])}
    optimizer = make_optimizer(
        config,
        make_schedule(config, CLOCK),
        decay=config.weight_decay,
        decayed={'w': True, 'b': False},
        layers={'w': 0, 'b': 2},
        num_layers=2,
    )
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    expected = {name: np.array(value, np.float64) for name, value in params.items()}
    m = {name: 0.0 for name in params}
    v = {name: 0.0 for name in params}
    for t in range(1, 6):
        grads = {name: rng.normal(size=value.shape) * 3 for name, value in expected.items()}
        updates, state = optimizer.update(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g / max(norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.9 * v[name] + 0.1 * g**2
            step = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.9**t)) + 1e-8)
            decay = 0.1 * expected[name] if name == 'w' else 0.0
            scale = 0.5**2 if name == 'w' else 1.0
            expected[name] = expected[name] - 0.01 * scale * (step + decay)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize('rule', ['adamw', 'sgd'])
def test_a_scheduled_weight_decay_equals_a_plain_loop(rule):
    """I-JEPA: half a cosine from one decay to another, over twice the run."""
    config = OptimizerConfig(
        rule=rule,
        learning_rate=0.1,
        scaling='none',
        schedule='constant',
        beta1=0.0,
        beta2=0.0,
        momentum=0.0,
        weight_decay=0.04,
        end_weight_decay=0.4,
        horizon=2.0,
    )
    decay = make_decay_schedule(config, Clock(1024, 1024, 5))
    given = {'decayed': {'w': True, 'b': False}, 'layers': {'w': 0, 'b': 0}, 'num_layers': 1}
    optimizer = make_optimizer(config, make_schedule(config, CLOCK), decay=decay, **given)
    params = {'w': jnp.array([2.0, -1.0]), 'b': jnp.array([3.0])}
    expected, state = jax.tree.map(np.float64, params), optimizer.init(params)
    for step in range(5):
        grads = {'w': np.array([0.5, -2.0]) * (step + 1), 'b': np.array([1.0])}
        updates, state = optimizer.update(jax.tree.map(np.float32, grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        now = 0.4 - 0.36 * 0.5 * (1 + math.cos(math.pi * step / 10))
        for name, factor in (('w', now), ('b', 0.0)):
            move = np.sign(grads[name]) if rule == 'adamw' else grads[name]
            expected[name] = expected[name] - 0.1 * (move + factor * expected[name])
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-5)


def test_layer_decay_scales_stacked_blocks_one_by_one():
    config = OptimizerConfig(
        learning_rate=1.0, scaling='none', schedule='constant', weight_decay=0.0, layer_decay=0.5
    )
    params = {'blocks': jnp.zeros((3, 2, 2))}
    optimizer = make_optimizer(
        config,
        make_schedule(config, CLOCK),
        decay=config.weight_decay,
        decayed={'blocks': True},
        layers={'blocks': np.arange(1, 4)},
        num_layers=4,
    )
    updates, _ = optimizer.update({'blocks': jnp.ones((3, 2, 2))}, optimizer.init(params), params)
    # The first step of Adam is minus the learning rate wherever the gradient is positive.
    expected = -np.array([0.125, 0.25, 0.5])[:, None, None] * np.ones((3, 2, 2))
    np.testing.assert_allclose(updates['blocks'], expected, rtol=1e-5)


@pytest.mark.parametrize('rule', ['lars', 'sgd'])
def test_lars_and_sgd_equal_a_plain_loop(rule):
    """facebookresearch/mae, util/lars.py; for each block of a stack by itself."""
    config = OptimizerConfig(
        rule=rule,
        learning_rate=2.0,
        scaling='none',
        warmup_steps=2,
        weight_decay=0.1,
        momentum=0.8,
        trust=0.01,
    )
    clock = Clock(1024, 1024, 6)
    schedule = make_schedule(config, clock)
    rng = np.random.default_rng(0)
    params = {'w': rng.normal(size=(4, 3)), 'b': rng.normal(size=3), 'zero': np.zeros((2, 2))}
    params |= {'blocks': rng.normal(size=(2, 3, 3)) * np.array([1, 30])[:, None, None]}
    decayed = {'w': True, 'b': False, 'zero': True, 'blocks': True}
    layers = {'w': 0, 'b': 3, 'zero': 3, 'blocks': np.arange(1, 3)}
    common = {'decayed': decayed, 'layers': layers, 'num_layers': 3}
    optimizer = make_optimizer(config, schedule, decay=0.1, **common)
    found = jax.tree.map(np.float32, params)
    state = optimizer.init(found)
    expected = {name: value.copy() for name, value in params.items()}
    momentum = {name: np.zeros_like(value) for name, value in params.items()}
    for step in range(6):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        grads['w'][:] = 0 if step == 1 else grads['w']
        updates, state = optimizer.update(jax.tree.map(np.float32, grads), state, found)
        found = jax.tree.map(jnp.add, found, updates)
        for name, value in expected.items():
            g = grads[name] + (0.1 * value if decayed[name] else 0)
            if rule == 'lars' and decayed[name]:
                for part in [...] if name != 'blocks' else [0, 1]:
                    norm, step_norm = (np.sqrt((x[part] ** 2).sum()) for x in (value, g))
                    if norm > 0 and step_norm > 0:
                        g[part] = g[part] * 0.01 * norm / step_norm
            momentum[name] = 0.8 * momentum[name] + g
            expected[name] = value - float(schedule(step)) * momentum[name]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    moved = np.abs(expected['blocks'] - params['blocks']).max(axis=(1, 2))
    assert rule == 'sgd' or moved[1] > 10 * moved[0]  # of its own norm


@pytest.mark.parametrize('rule', ['adamw', 'sgd'])
def test_parameters_with_a_rate_of_their_own_follow_no_schedule(rule):
    """MOCA: the weight generators keep rate and decay, while those of all others move."""
    config = OptimizerConfig(
        rule=rule,
        learning_rate=0.1,
        scaling='none',
        beta1=0.0,
        beta2=0.0,
        momentum=0.0,
        weight_decay=0.05,
        end_weight_decay=0.2,
        horizon=2.0,
        weight_decay_horizon=1.0,
        constant_rates=(('word_gen.*kernel', 0.3), ('_gen', 0.03)),
    )
    clock = Clock(1024, 1024, 4)
    params = {
        'encoder': {'kernel': jnp.array([2.0, -1.0])},
        'word_gen': {'kernel': jnp.array([3.0]), 'bias': jnp.array([1.0])},
    }
    constant = constant_rates(params, rules=config.constant_rates)
    assert constant == {'word_gen/kernel': 0.3, 'word_gen/bias': 0.03}
    decayed = {'encoder': {'kernel': True}, 'word_gen': {'kernel': True, 'bias': False}}
    optimizer = make_optimizer(
        config,
        make_schedule(config, clock),
        decay=make_decay_schedule(config, clock),
        decayed=decayed,
        layers=jax.tree.map(lambda x: 0, params),
        num_layers=1,
        constant=constant,
    )
    expected, state = jax.tree.map(np.float64, params), optimizer.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda x, size=step - 2.5: np.full(x.shape, size), params)
        updates, state = optimizer.update(jax.tree.map(np.float32, grads), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 8))
        decay = 0.2 - 0.15 * 0.5 * (1 + math.cos(math.pi * step / 4))
        move = np.sign(step - 2.5) if rule == 'adamw' else step - 2.5
        kernel, mine = expected['encoder']['kernel'], expected['word_gen']
        expected['encoder']['kernel'] = kernel - rate * (move + decay * kernel)
        mine['kernel'] = mine['kernel'] - 0.3 * (move + 0.05 * mine['kernel'])
        mine['bias'] = mine['bias'] - 0.03 * move
    for name, value in jax.tree_util.tree_leaves_with_path(params):
        part, leaf = (key.key for key in name)
        np.testing.assert_allclose(value, expected[part][leaf], rtol=1e-5)


def test_a_constant_rate_is_for_a_parameter():
    with pytest.raises(UserError, match="constant_rates: 'head' is for no parameter"):
        constant_rates({'encoder': jnp.ones(2)}, rules=(('enc', 1.0), ('head', 1.0)))
    with pytest.raises(ValueError, match=r"constant_rates: '\(' is no expression"):
        OptimizerConfig(constant_rates=(('(', 1.0),))


def test_frozen_parts_by_name():
    params = {'encoder': 1, 'head': 2}
    assert trained(params, frozen=()) == params
    assert trained(params, frozen=('encoder',)) == {'head': 2}
    with pytest.raises(UserError, match="frozen names 'decoder', but .* the parts encoder, head"):
        trained(params, frozen=('decoder',))
    with pytest.raises(UserError, match='names all parts'):
        trained(params, frozen=('encoder', 'head'))
