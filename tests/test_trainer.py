"""The loop: what it compiles, and what it may not wait for."""

import collections

import jax
import pytest

from mim_jax import distributed, experiment, sharding, work_directory
from mim_jax.logs import read_metrics
from mim_jax.trainer import Trainer

COMPILED = '/jax/core/compile/backend_compile_duration'


def make_trainer(config, workdir):
    """A trainer that evaluates, draws and saves at every second of six steps."""
    config.train.total_steps = 6
    config.mesh.data = 1
    config.eval.every_steps = config.log.pictures_every_steps = config.checkpoint.every_steps = 2
    config.log.health = True
    run = experiment.from_config(config)
    trainer = Trainer(run, workdir)
    work_directory.claim(workdir, run)
    return trainer


def test_data_workers_follow_the_cores(tiny_config, tmp_path, monkeypatch):
    config = tiny_config('mae')
    config.eval.evaluators = ()
    config.data.workers = -1
    monkeypatch.setattr(distributed, 'own_cores', lambda: 7)
    trainer = make_trainer(config, tmp_path)
    assert trainer.program.run.data.workers == 6
    assert work_directory.section(tmp_path, 'data')['workers'] == -1  # another host has others


@pytest.mark.slow
def test_everything_is_compiled_once(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config('mae'), tmp_path)
    seen = []

    def listen(event, seconds, **about):
        if event == COMPILED:
            seen.append((trainer.done, about.get('fun_name')))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        trainer.train()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The first pictures are drawn after two steps; from then on all is there.
    assert max(done for done, _ in seen) == 2
    # Nor was anything made twice before: `called` are the step and the checkup.
    twice = {name: n for name, n in collections.Counter(n for _, n in seen).items() if n > 1}
    assert twice == {'jit(called)': 2}
    lines = read_metrics(tmp_path)
    assert [line['step'] for line in lines if 'eval/knn/top1' in line] == [0, 2, 4, 6]


@pytest.mark.slow
def test_a_batch_that_is_not_on_the_device_is_refused(tiny_config, tmp_path, monkeypatch):
    trainer = make_trainer(tiny_config('mae'), tmp_path)
    monkeypatch.setattr(sharding, 'put_batch', lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device transfer'):
        trainer.train()
