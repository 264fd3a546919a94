"""Weights & Biases by a stand-in: what is written where, and under which id a run goes on."""

import sys
import types

import numpy as np
import pytest

from mim_jax import layout, logs, wandb_writer
from mim_jax.errors import UserError


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package that keeps what it is told in `begun`, a dict per run."""
    begun = []

    class Error(Exception):
        pass

    class Run:
        def __init__(self, said):
            self.said = {**said, 'metrics': [], 'logged': [], 'finished': 0}
            begun.append(self.said)

        def define_metric(self, name, step_metric):
            self.said['metrics'].append((name, step_metric))

        def log(self, values):
            self.said['logged'].append(values)

        def finish(self):
            self.said['finished'] += 1

    def init(**said):
        if said['project'] == 'forbidden':
            raise Error('not logged in')
        return Run(said)

    module = types.SimpleNamespace(init=init, Error=Error, Image=lambda array: array.shape)
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return begun


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / layout.CONFIG_FILE).write_text('{"seed": 3}')
    return folder


def logger(workdir, project='mim', *, is_main=True):
    config = logs.LogConfig(tensorboard=False, progress=False, wandb=project)
    return logs.Logger(workdir, config, total_steps=4, is_main=is_main)


def test_scalars_and_pictures_under_their_flat_names(wandb, workdir):
    log = logger(workdir)
    log.scalars(2, {'train/loss': np.float32(0.5), 'eval/knn/top1': 0.25})
    log.pictures(4, {'mask': np.zeros((2, 3, 3), np.uint8)})
    log.close()
    log.close()
    (run,) = wandb
    assert run['logged'] == [
        {'step': 2, 'train/loss': 0.5, 'eval/knn/top1': 0.25},
        {'step': 4, 'pictures/mask': (2, 3, 3)},
    ]
    assert run['metrics'] == [('*', 'step')] and run['finished'] == 1
    assert (run['project'], run['name'], run['dir']) == ('mim', 'run', str(workdir))
    assert run['config'] == {'seed': 3}
    assert [line['step'] for line in logs.read_metrics(workdir)] == [2]


def test_a_run_that_resumes_keeps_its_id(wandb, workdir, tmp_path):
    for _ in range(2):
        logger(workdir).close()
    other = tmp_path / 'other'
    other.mkdir()
    (other / layout.CONFIG_FILE).write_text('{}')
    logger(other).close()
    first, again, of_other = (run['id'] for run in wandb)
    assert first == again != of_other and len(first) == 8
    assert all(run['resume'] == 'allow' for run in wandb)


@pytest.mark.parametrize('failing', ['log', 'finish'])
def test_a_failure_is_told_once_and_ends_nothing(failing, wandb, workdir, caplog, monkeypatch):
    log = logger(workdir)
    calls = []

    def fail(*_):
        calls.append(failing)
        raise ConnectionResetError('Connection lost')

    monkeypatch.setattr(log._wandb._run, failing, fail)
    for step in (1, 2):
        log.scalars(step, {'train/loss': 0.5})
        log.pictures(step, {'mask': np.zeros((2, 3, 3), np.uint8)})
    log.close()
    assert calls == [failing] and caplog.text.count('failed (Connection lost)') == 1
    (run,) = wandb
    assert run['finished'] == 0 and len(run['logged']) == (0 if failing == 'log' else 4)
    assert [line['step'] for line in logs.read_metrics(workdir)] == [1, 2]


def test_only_where_it_is_asked_for(wandb, workdir):
    logger(workdir, None).close()
    logger(workdir, is_main=False).close()
    assert wandb == [] and not (workdir / wandb_writer.ID_FILE).exists()
    wandb_writer.check('mim')


def test_mistakes_are_one_sentence(wandb, workdir, monkeypatch):
    with pytest.raises(UserError, match='forbidden: no run can be begun there .not logged in.'):
        logger(workdir, 'forbidden')
    # A folder of logs in the working directory can be imported as a package without anything.
    for module in (None, types.ModuleType('wandb')):
        monkeypatch.setitem(sys.modules, 'wandb', module)
        wandb_writer.check(None)
        with pytest.raises(UserError, match=r"wandb = mim: .* not installed: .*'.\[wandb\]'"):
            wandb_writer.check('mim')
