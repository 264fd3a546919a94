"""Probing in the one trainer: a frozen encoder, batch norm before the classifier, attention."""

import dataclasses
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax import traverse_util

from mim_jax import assembly, data, experiment, flops, sharding
from mim_jax import config as configs
from mim_jax.checkpoints import Checkpoints
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.models import AttentivePool
from mim_jax.program import Program

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
SIZES = ('vitb', 'cifar10', 'embedded')


@pytest.fixture
def make(tiny_config):
    def make(*, mesh=None, **objective):
        config = tiny_config('classification')
        config.model.update(drop_path=0.0, class_token=True)
        config.mesh.update({'data': 1, 'min_shard_size': 64, **(mesh or {})})
        config.objective.update(pool_norm=False, batch_norm=True, head_scale=1.0, **objective)
        config.optimizer.update(
            rule='lars', frozen=('encoder',), learning_rate=10.0, scaling='none', weight_decay=0.1
        )
        run = experiment.from_config(config)
        source = data.make_source(run.data, split='train')
        return Program.make(run, epoch_examples=64, fields=source.fields), source

    return make


def trained(program, source, count=2):
    """(first state's variables, final state, metrics of every step, batches)."""
    state, step = program.init({}), program.trace().lower().compile()
    first = jax.device_get(state.variables)
    host = data.train_batches(source, program.run.data, seed=0)
    batches, seen = [next(host) for _ in range(count)], []
    for batch in batches:
        state, metrics = step(state, sharding.put_batch(batch, program.mesh))
        seen.append(jax.device_get(metrics))
    return first, state, seen, batches


def by_hand(program, params, images):
    """Pooled features, float64."""
    encoded = program.objective.features({'params': params}, images.astype(np.float32) / 255)
    return np.float64(encoded.class_token)


def test_a_frozen_encoder_stays_and_has_no_state(make):
    program, source = make(pooling='class_token')
    first, state, seen, (batch, _) = trained(program, source)
    last = jax.device_get(state.variables)
    chex.assert_trees_all_equal(first['params']['encoder'], last['params']['encoder'])
    changed = jax.tree.map(np.array_equal, first['params']['head'], last['params']['head'])
    assert not any(jax.tree.leaves(changed))
    kernel = first['params']['head']['linear']['kernel']
    assert {x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim} == {
        kernel.shape,
        kernel.shape[1:],
    }
    # The loss, its gradient's norm and the running averages of the first step, written out.
    x = by_hand(program, first['params'], batch['images'])
    normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    logits = normed @ kernel
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    labels = np.eye(10)[batch['labels']]
    assert seen[0]['loss'] == pytest.approx(-np.log((p * labels).sum(1)).mean(), rel=1e-4)
    gradient = np.r_[normed.T @ (p - labels), [(p - labels).sum(0)]] / len(x)
    assert seen[0]['grad_norm'] == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-3)


def test_running_averages_judge(make):
    program, source = make(pooling='class_token')
    first, state, _, batches = trained(program, source)
    mean, variance = np.zeros(32), np.ones(32)
    for batch in batches:
        x = by_hand(program, first['params'], batch['images'])
        mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0, ddof=1)
    variables = jax.device_get(state.variables)
    found = variables['state']['batch_norm']
    np.testing.assert_allclose(found['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found['variance'], variance, rtol=1e-4)
    images = batches[0]['images'][:3]  # of a few images: their own statistics play no part
    linear = variables['params']['head']['linear']
    x = by_hand(program, first['params'], images)
    expected = (x - mean) / np.sqrt(variance + 1e-6) @ linear['kernel'] + linear['bias']
    logits = program.objective.logits(variables, images.astype(np.float32) / 255)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_attentive_pooling_sees_class_and_patch_tokens(make):
    program, source = make(pooling='attentive')
    first, state, _, (batch, _) = trained(program, source)
    variables = jax.device_get(state.variables)
    head, images = variables['params']['head'], batch['images'].astype(np.float32) / 255
    encoded = program.objective.features(variables, images)
    tokens = np.concatenate([encoded.class_token[:, None], encoded.tokens], axis=1)
    pooled = AttentivePool(heads=2).apply({'params': head['pool']}, tokens)
    running = variables['state']['batch_norm']
    normed = (pooled - running['mean']) / np.sqrt(running['variance'] + 1e-6)
    expected = normed @ head['linear']['kernel'] + head['linear']['bias']
    logits = program.objective.logits(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first['params']['head'], head)
    assert all(x > 0 for x in jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize('pooling', ['class_token', 'attentive'])
def test_any_mesh_probes_alike(make, pooling):
    _, state, seen, _ = trained(*make(pooling=pooling))
    _, other, other_seen, _ = trained(*make(pooling=pooling, mesh={'data': 2, 'fsdp': 4}))
    for mine, theirs in zip(seen, other_seen, strict=True):
        np.testing.assert_allclose(theirs['loss'], mine['loss'], rtol=2e-5)
    one, many = (
        traverse_util.flatten_dict(jax.device_get({k: x.variables[k] for k in ('params', 'state')}))
        for x in (state, other)
    )
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-3, atol=1e-4, err_msg=str(name))


def test_nothing_is_computed_backwards_through_a_frozen_encoder(make):
    program, _ = make(pooling='class_token')
    free = dataclasses.replace(
        program.run, optimizer=dataclasses.replace(program.run.optimizer, frozen=())
    )
    free = Program.make(free, epoch_examples=64, fields=program.objective.inputs.fields)
    count, whole = (flops.matmul_flops(x.trace().jaxpr) for x in (program, free))
    assert count < 0.4 * whole, (count, whole)


@pytest.mark.slow
def test_a_resumed_probe_is_the_probe(make, tmp_path):
    program, source = make(pooling='attentive')
    step = program.trace().lower().compile()
    host = data.train_batches(source, program.run.data, seed=0)
    batches = [sharding.put_batch(next(host), program.mesh) for _ in range(2)]
    state, _ = step(program.init({}), batches[0])
    saving = Checkpoints(tmp_path, program.run.checkpoint, program.clock)
    saving.save(1, state, {})
    saving.close()
    reading = Checkpoints(tmp_path, program.run.checkpoint, program.clock)
    restored, _ = reading.restore(program.restorable())
    reading.close()
    expected, metrics = step(state, batches[1])
    found, again = step(restored, batches[1])
    chex.assert_trees_all_equal(jax.device_get(metrics), jax.device_get(again))
    chex.assert_trees_all_equal(jax.device_get(expected), jax.device_get(found))


def test_refusals(make, tiny_config):
    config = tiny_config('classification', accumulation=2)
    config.mesh.data = 1
    config.objective.batch_norm = True
    fields = data.make_source(experiment.from_config(config).data, split='train').fields

    def program():
        return Program.make(experiment.from_config(config), epoch_examples=64, fields=fields)

    with pytest.raises(UserError, match='needs its batch in one piece'):
        program()
    config.objective.batch_norm = False
    config.optimizer.frozen = ('encode',)
    with pytest.raises(UserError, match="config.optimizer.frozen names 'encode', but"):
        program()


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['linear', 'attentive'])
def test_every_probe_builds(kind, size):
    run = experiment.from_config(configs.load(f'{CONFIGS / "probe.py"}:{kind}_{size}'))
    clock = Clock(run.data.batch_size, 1000, 100)
    objective = assembly.make_objective(run, fields=run.data.source.assumed_fields(), clock=clock)
    images = assembly.batch_struct(run, objective)['images']
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert ('pool' in params['head']) == (kind == 'attentive')
    assert params['head'].keys() >= {'linear'} and run.optimizer.frozen == ('encoder',)
    assert run.optimizer.rule == {'linear': 'lars', 'attentive': 'sgd'}[kind]


def test_an_unknown_probe_is_one_sentence():
    with pytest.raises(UserError, match="linear_vitb, .* not 'linear'"):
        configs.load(f'{CONFIGS / "probe.py"}:linear')
