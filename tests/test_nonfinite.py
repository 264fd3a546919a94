"""Steps whose numbers are not finite: they change nothing, are told, and can be repeated."""

import dataclasses
import json
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mim_jax import (
    checkpoints,
    data,
    experiment,
    layout,
    nonfinite,
    replay,
    sharding,
    work_directory,
)
from mim_jax.averages import Average
from mim_jax.errors import UserError
from mim_jax.logs import read_metrics
from mim_jax.objectives import OBJECTIVES
from mim_jax.objectives.simmim import SimMIM
from mim_jax.optimizers import OptimizerConfig, make_optimizer
from mim_jax.train_step import TrainStep
from mim_jax.trainer import Trainer

LABEL = 1  # of the images that are to blame; every batch here has some


@dataclasses.dataclass(frozen=True)
class Poisoned(SimMIM):
    """bad: the steps (0 is the first) in which the images of one class make the loss NaN."""

    bad: tuple[int, ...] = ()

    def loss(self, variables, batch, key, step):
        value, metrics, state = super().loss(variables, batch, key, step)
        poisoned = jnp.isin(step, jnp.array(self.bad, jnp.int32)) & (batch['labels'] == LABEL).any()
        return jnp.where(poisoned, jnp.nan, 1.0) * value, metrics, state


@pytest.fixture
def poisoned_config(tiny_config, monkeypatch):
    """Function (bad, **train) -> config of a run on one device."""
    monkeypatch.setitem(OBJECTIVES, 'poisoned', Poisoned)

    def make(bad, **train):
        config = tiny_config('poisoned', **train)
        config.objective.bad = bad
        config.model.mask_token = True
        config.mesh.data = 1
        config.eval.evaluators = ()
        return config

    return make


class Regression:
    """Enough of an objective for a step: one weight, a state of its own, and NaN by the labels."""

    def init(self, key, images):
        return {'params': {'w': jnp.ones(())}, 'state': {'seen': jnp.zeros(())}}

    def loss(self, variables, batch, key, step):
        value = ((variables['params']['w'] - batch['images'].mean()) ** 2).mean()
        poisoned = jnp.where((batch['labels'] == LABEL).any(), jnp.nan, 1.0)
        return value * poisoned, {}, {'seen': variables['state']['seen'] + 1}


def is_schedule(x):
    return isinstance(x, optax.ScaleByScheduleState)


def split(state):
    """The schedules' counts, and everything else that a step changes."""
    leaves = jax.tree.leaves(state.opt_state, is_leaf=is_schedule)
    rest = [leaf for leaf in leaves if not is_schedule(leaf)]
    return [int(x.count) for x in leaves if is_schedule(x)], jax.device_get((state.variables, rest))


@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_refused_step_changes_nothing(accumulation):
    """Steps 1 (good), 2 (skipped), 3 (good), 4 (one too many), 5 (good, but the run is over)."""
    schedule = optax.constant_schedule(0.1)
    tree = {'decayed': {'w': True}, 'layers': {'w': 0}, 'num_layers': 1}
    optimizer = make_optimizer(OptimizerConfig(), schedule, decay=schedule, **tree)
    step = TrainStep(
        objective=Regression(),
        augment=lambda keys, batch: batch,
        optimizer=optimizer,
        schedule=schedule,
        seed=0,
        accumulation=accumulation,
        average=Average(decay=0.5),
        average_decay=optax.constant_schedule(0.5),
        mesh=sharding.make_mesh(sharding.MeshConfig(data=1)),
        skip_nonfinite=1,
    )
    images = jnp.linspace(0, 1, 4).reshape(4, 1, 1, 1)
    good = {'images': images, 'labels': jnp.zeros(4, jnp.int32)}
    bad = {'images': images, 'labels': jnp.array([0, 0, 0, LABEL], jnp.int32)}
    update, state = jax.jit(step), step.init(images)
    counts, states = [], []
    for batch in (good, bad, good, bad, good):
        state, metrics = update(state, batch)
        counts.append((int(state.step), int(state.refused), bool(np.isfinite(metrics['loss']))))
        states.append(split(state))
    assert counts == [(1, 0, True), (2, 1, False), (3, 1, True), (3, 2, False), (3, 2, True)]
    # Parameters, average, moments and the method's state stay; only schedules go by the step.
    assert [schedules for schedules, _ in states] == [[n, n] for n in (1, 2, 3, 3, 3)]
    chex.assert_trees_all_equal(states[1][1], states[0][1])
    assert states[2][1][0]['params']['w'] != states[1][1][0]['params']['w']
    for _, later in states[3:]:
        chex.assert_trees_all_equal(later, states[2][1])


def train(config, workdir):
    run = experiment.from_config(config)
    trainer = Trainer(run, workdir)
    work_directory.claim(workdir, run)
    trainer.train()


@pytest.mark.slow
def test_a_run_stops_before_it_and_goes_on_without_it(
    poisoned_config, tmp_path, capfd, monkeypatch
):
    """A run that skips one step, and one that stops at it and is told to skip it: the same lines
    (means over steps before and after the stop among them) and the same parameters.
    """

    def config(skip):
        made = poisoned_config((3,), total_steps=7, skip_nonfinite=skip)
        made.log.every_steps = 3
        made.checkpoint.every_steps = 6
        made.data.source.num_train = 20
        return made

    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')  # JAX is running here already
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(config(1), whole)
    assert 'Step 4: loss is nan; it was left out (1 of at most 1)' in capfd.readouterr().out
    for _ in range(2):  # starting again does not get past it
        with pytest.raises(UserError, match=r'^Step 4: loss is nan, .* step 3 is saved\..*replay'):
            train(config(0), parts)
        assert checkpoints.saved_steps(parts) == [3]
    check_record_and_replay(parts, capfd)
    train(config(1), parts)
    lines = [
        [{k: v for k, v in line.items() if not k.startswith('speed/')} for line in read_metrics(d)]
        for d in (whole, parts)
    ]
    assert lines[0] == lines[1]
    assert [line['step'] for line in lines[0]] == [3, 6, 7]
    assert [line.get('train/refused_steps') for line in lines[0]] == [None, 1, 1]
    chex.assert_trees_all_equal(*(checkpoints.restore_variables(d)[0] for d in (whole, parts)))
    shutil.rmtree(whole / 'checkpoints' / '7')
    with pytest.raises(UserError, match='1 of its steps .*skip_nonfinite = 0 allows'):
        train(config(0), whole)


def check_record_and_replay(workdir, capfd):
    """The images of the record are those of the batch, those to blame are named."""
    record = json.loads((workdir / 'nonfinite' / '4.json').read_text())
    assert record['metrics']['loss'] == 'nan' and record['step'] == 4
    assert record['repeat'] == nonfinite.command(workdir, 4)
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob('*') if p.name != 'lock')
    capfd.readouterr()
    assert replay.main(record['repeat'].split()[3:]) == 0
    out = capfd.readouterr().out
    after = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob('*') if p.name != 'lock')
    assert after == before
    assert 'step 4, 1 after the checkpoint of step 3' in out
    source = data.make_source(replay.read_config(workdir).data, split='train')
    bad = [item for item in record['items'] if source[item]['label'] == LABEL]
    named = ', '.join(f'{item} ({source.describe(item)})' for item in bad)
    assert bad and f'losses of images: {len(bad)} not finite: {named}\n' in out
    assert 'features of images: all finite' in out and 'parameters: all finite' in out
    assert 'gradient: ' in out and 'block_01           nan' in out


def test_replay_refuses_what_is_no_run(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    assert replay.main([f'--workdir={tmp_path / "none"}', '--step=3']) == 2
    assert 'config.json' in capfd.readouterr().err
    assert not (tmp_path / 'none').exists()


def test_replay_refuses_a_step_of_another_length(tmp_path):
    changed = {'after_step': 4, 'changed': ['train.total_steps: 4 -> 8']}
    (tmp_path / layout.CHANGES_FILE).write_text(json.dumps(changed) + '\n')
    trainer = types.SimpleNamespace(workdir=tmp_path, total=8)
    for step in (1, 4, 5):  # there is no checkpoint: it would begin at the start
        with pytest.raises(UserError, match=f'--step={step}: .* was lengthened after step 4, and'):
            replay.replay(trainer, step, say=print)
