"""Training by two real processes on this machine equals training by one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from mim_jax import checkpoints, layout, storage
from tests import buckets

ROOT = Path(__file__).parents[1]
DEVICES = 2
SMALL = (
    '--config=configs/quickstart.py',
    '--config.data.batch_size=16',
    '--config.data.source.num_train=128',
    '--config.data.source.num_test=32',
    '--config.train.total_steps=5',
    '--config.log.every_steps=1',
    '--config.log.tensorboard=false',
    '--config.log.num_pictures=2',
    # Evaluation, pictures and checkpoints at the end only.
    '--config.eval.every_percent=none',
    '--config.log.pictures_every_percent=none',
    '--config.checkpoint.every_percent=none',
    '--config.eval.knn.max_train=64',
    '--config.eval.knn.max_test=32',
    '--config.mesh.data=1',
    f'--config.mesh.fsdp={DEVICES}',
    '--config.mesh.min_shard_size=256',
)


def start(workdir, *arguments, processes):
    """The processes of one run; they have DEVICES CPU devices together, whatever their number.

    A `{}` in the name of the work directory is the process.
    """
    with socket.socket() as listener:
        listener.bind(('', 0))
        port = listener.getsockname()[1]
    clusters = ('MIM_JAX_', 'SLURM_', 'OMPI_')
    ours = {name: value for name, value in os.environ.items() if not name.startswith(clusters)}
    # Otherwise as these tests compile: quickly.
    flags = re.sub(r'device_count=\d+', f'device_count={DEVICES // processes}', ours['XLA_FLAGS'])
    return [
        subprocess.Popen(
            [
                sys.executable,
                '-m',
                'mim_jax.main',
                *SMALL,
                f'--workdir={str(workdir).format(process)}',
                *arguments,
            ],
            env={
                **ours,
                'JAX_PLATFORMS': 'cpu',
                'XLA_FLAGS': flags,
                # XLA's CPU devices block a thread of one pool in each collective, and may start
                # collectives in different orders: with as few threads as cores they wait for
                # each other for ever.
                'NPROC': '16',
                'MIM_JAX_COORDINATOR': f'localhost:{port}',
                'MIM_JAX_NUM_PROCESSES': str(processes),
                'MIM_JAX_PROCESS_ID': str(process),
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]


def finish(run):
    """Waits for the processes; gives what each printed."""
    outputs = [process.communicate(timeout=300)[0] for process in run]
    assert not any(process.returncode for process in run), '\n\n'.join(outputs)
    return outputs


def metrics(workdir, name):
    """{step: value} of a metric of a run."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line[name] for line in lines if name in line}


@pytest.fixture(scope='module')
def one_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('one')
    finish(start(workdir, processes=1))
    return workdir


def reached(run, path):
    """Waits until a run has written something."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert all(process.poll() is None for process in run) and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_that_are_killed_train_on_to_the_losses_of_one(one_process, tmp_path):
    saving = '--config.checkpoint.every_steps=1'
    run = start(tmp_path, saving, processes=2)
    reached(run, tmp_path / 'checkpoints' / '1')
    for process in run:
        process.kill()
    assert [process.wait() for process in run] == [-signal.SIGKILL] * 2
    assert 'resuming after step' in finish(start(tmp_path, saving, processes=2))[0]
    for name in ('train/loss', 'train/grad_norm'):
        expected, found = metrics(one_process, name), metrics(tmp_path, name)
        assert list(found) == list(expected) == list(range(1, 6))
        np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)
    expected, found = metrics(one_process, 'eval/knn/top1'), metrics(tmp_path, 'eval/knn/top1')
    assert list(found) == list(expected) == [0, 5]
    # An image whose two nearest classes are equally near may go either way.
    np.testing.assert_allclose([*found.values()], [*expected.values()], atol=1 / 32)


@pytest.mark.slow
def test_a_work_directory_that_one_process_alone_sees_is_refused(tmp_path):
    outputs = []
    for process in start(tmp_path / '{}', processes=2):
        outputs.append(process.communicate(timeout=300)[0])
        assert process.returncode == 2, outputs[-1]
    for output in outputs:
        assert re.search(
            '^error: --workdir=.*: process 1 does not see that of process 0', output, re.M
        )
        assert 'Traceback' not in output
    assert [path.name for path in (tmp_path / '0').iterdir()] == ['lock']
    assert not (tmp_path / '1').exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_and_one_alone_resumes_on_another_mesh(one_process, tmp_path):
    run = start(tmp_path, '--config.eval.evaluators=()', processes=2)
    # The config is written once the processes have met, and before the first step is compiled.
    reached(run, tmp_path / 'config.json')
    run[1].send_signal(signal.SIGTERM)
    assert 'resumes from there' in finish(run)[0]
    losses = metrics(one_process, 'train/loss')
    assert set(metrics(tmp_path, 'train/loss')) < set(losses)

    mesh = ('--config.mesh.data=2', '--config.mesh.fsdp=1')
    finish(start(tmp_path, '--config.eval.evaluators=()', *mesh, processes=1))
    found = metrics(tmp_path, 'train/loss')
    assert list(found) == list(losses)
    np.testing.assert_allclose([*found.values()], [*losses.values()], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_in_a_bucket_are_killed_and_end_as_two_that_were_not(tmp_path, monkeypatch):
    """To the last bit."""
    pytest.importorskip('gcsfs')
    pytest.importorskip('gcp_storage_emulator')
    small = (
        '--config=configs/simmim.py:embedded',
        '--config.model.depth=1',
        '--config.eval.evaluators=()',
        '--config.log.num_pictures=1',
        '--config.log.health=false',
        '--config.train.total_steps=16',
        '--config.checkpoint.every_steps=4',
    )
    finish(start(tmp_path, *small, processes=2))
    with buckets.serving() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        workdir = f'gs://{buckets.BUCKET}/run'
        run = start(workdir, *small, processes=2)
        # A checkpoint begins when the one before is whole.
        seen = next(line for line in run[0].stdout if re.match('step +9/', line))
        for process in run:
            process.kill()
        assert [process.wait() for process in run] == [-signal.SIGKILL] * 2, seen
        saved = layout.saved_steps(workdir)
        assert saved and saved[-1] <= 9
        output, *_ = finish(start(workdir, *small, processes=2))
        assert f'resuming after step {saved[-1]} of 16' in output
        found, step = checkpoints.restore_variables(workdir)
        losses = metrics(storage.path(workdir), 'train/loss')
    expected, last = checkpoints.restore_variables(tmp_path)
    assert step == last == 16
    chex.assert_trees_all_equal(found, expected)
    assert losses == metrics(tmp_path, 'train/loss')
