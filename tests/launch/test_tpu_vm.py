"""launch/tpu_vm.sh, with a gcloud whose workers are folders on this machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'tpu_vm.sh'
SLICE = ('--name=my-slice', '--zone=us-west4-a', '--project=my-project')
TRAINING = (
    '--config=configs/dtm_vitb.py',
    '--workdir=/mnt/shared/runs/dtm',
    "--config.data.source.path=/data/it's my photos",
    '--config.note=$HOME; `exit 3` "x" \\',
    '--config.empty=',
)

# Writes its arguments to calls/N, one per line end-marked by NUL; runs what would run on a worker
# with the worker's folder as home.
GCLOUD = """#!/usr/bin/env bash
set -eu
printf '%s\\0' "$@" >"$CALLS/$(ls "$CALLS" | wc -l)"
case "$*" in
  *describe*) echo "$STATE" ;;
  *' scp '*)
    for word in "$@"; do
      case $word in /*) cp "$word" "$WORKER/mim_jax.tar.gz" ;; esac
    done
    ;;
  *' ssh '*)
    for word in "$@"; do
      case $word in --command=*) HOME=$WORKER bash -c "cd && ${word#--command=}" ;; esac
    done
    ;;
esac
"""

# The worker's Python: keeps its arguments, and saves when it is asked to end.
PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
printf '%s\\0' "$@" >arguments
while true; do sleep 0.05; done
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
    """Runs the script; gives the finished process and the calls of gcloud that it made."""
    executable(tmp_path / 'bin' / 'gcloud', GCLOUD)
    executable(tmp_path / 'worker' / 'mim_jax' / '.venv' / 'bin' / 'python', PYTHON)
    executable(tmp_path / 'worker' / '.local' / 'bin' / 'uv', '#!/bin/sh\necho uv "$@"\n')
    (tmp_path / 'calls').mkdir()

    def run(*arguments, state='ACTIVE', program=(str(SCRIPT),)):
        for call in (tmp_path / 'calls').iterdir():
            call.unlink()
        ours = {key: value for key, value in os.environ.items() if not key.startswith('TPU_')}
        result = subprocess.run(
            [*program, *arguments],
            env={
                **ours,
                'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
                'CALLS': str(tmp_path / 'calls'),
                'WORKER': str(tmp_path / 'worker'),
                'STATE': state,
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        calls = sorted((tmp_path / 'calls').iterdir(), key=lambda path: int(path.name))
        return result, [call.read_text().split('\0')[:-1] for call in calls]

    run.worker = tmp_path / 'worker'
    return run


def dry_run(cloud, *arguments):
    """What the script prints with --dry-run, no gcloud having been called."""
    result, calls = cloud(*arguments[:1], '--dry-run', *SLICE, *arguments[1:])
    assert result.returncode == 0, result.stderr
    assert not calls
    return result.stdout


def in_order(text, *parts):
    """Whether the parts stand in the text one after another."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_dry_run_prints_every_step_in_order(cloud):
    text = dry_run(cloud, 'all', '--setup=mount /mnt/shared', '--', *TRAINING[:2])
    assert in_order(
        text,
        'gcloud compute tpus queued-resources create my-slice --node-id=my-slice',
        'gcloud compute tpus queued-resources describe my-slice',
        'git -C',
        'archive',
        'gcloud compute tpus tpu-vm scp',
        '--worker=all',
        'gcloud compute tpus tpu-vm ssh my-slice --worker=all',
        'pip install',
        '.[tpu]',
        'mount /mnt/shared',
        'gcloud compute tpus tpu-vm ssh my-slice --worker=all',
        'python -m mim_jax.main --config=configs/dtm_vitb.py --workdir=/mnt/shared/runs/dtm',
        'gcloud compute tpus tpu-vm ssh my-slice --worker=0',
        'tail',
    )
    commands = [line for line in text.splitlines() if '--zone' in line]
    assert len(commands) == text.count('gcloud compute tpus') == 7
    assert all(line.endswith('--zone=us-west4-a --project=my-project') for line in commands)


def test_dry_run_needs_no_gcloud(tmp_path):
    for tool in ('bash', 'dirname', 'cat'):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    result = subprocess.run(
        [SCRIPT, 'delete', '--dry-run', *SLICE],
        env={'PATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout.split()[:5]) == (
        0,
        ['gcloud', 'compute', 'tpus', 'queued-resources', 'delete'],
    )
    result = subprocess.run(
        [SCRIPT, 'delete', *SLICE], env={'PATH': str(tmp_path)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert 'gcloud is not installed' in result.stderr


@pytest.mark.parametrize(
    'arguments',
    [
        ('create', '--spot', '--type=v6e-16'),
        ('create', '--direct'),
        ('start', '--', *TRAINING),
        ('log', '--worker=3'),
        ('status',),
        ('stop',),
        ('delete',),
        ('delete', '--direct'),
    ],
    ids=' '.join,
)
def test_what_a_dry_run_prints_is_what_a_run_calls(cloud, arguments):
    """The printed lines, pasted into a shell, call gcloud with the very arguments of the run."""
    executable(cloud.worker / 'mim_jax' / '.venv' / 'bin' / 'python', '#!/bin/sh\nexit 0\n')
    (cloud.worker / 'mim_jax' / 'train.log').write_text('step 1\n')
    executable(cloud.worker.parent / 'bin' / 'tail', '#!/bin/sh\nexit 0\n')
    printed = dry_run(cloud, *arguments)
    command, *options = arguments
    ran, calls = cloud(command, *SLICE, *options)
    assert ran.returncode == 0, ran.stderr
    _, pasted = cloud('-c', printed, program=('bash',))
    assert calls == pasted
    assert calls


@pytest.mark.parametrize(
    ('kind', 'image'),
    [
        ('v6e-16', 'v2-alpha-tpuv6e'),
        ('v5p-32', 'v2-alpha-tpuv5'),
        ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
        ('v4-8', 'tpu-ubuntu2204-base'),
    ],
)
def test_the_software_version_follows_the_type(cloud, kind, image):
    text = dry_run(cloud, 'create', f'--type={kind}')
    assert f'--accelerator-type={kind} --runtime-version={image} ' in text
    assert '--spot' not in text
    text = dry_run(cloud, 'create', f'--type={kind}', '--version=other', '--spot', '--direct')
    assert f'tpu-vm create my-slice --accelerator-type={kind} --version=other --spot ' in text


def test_a_lost_request_ends_the_wait(cloud):
    result, calls = cloud('create', *SLICE, state='FAILED')
    assert result.returncode == 2
    assert 'the request for my-slice is FAILED' in result.stderr
    assert len(calls) == 2


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='sends a commit, and this is no checkout')
def test_install_sends_the_commit_and_installs_it(cloud):
    result, _ = cloud('install', *SLICE, '--setup=echo "$HOME" >mounted')
    assert result.returncode == 0, result.stderr
    code = cloud.worker / 'mim_jax'
    assert (code / 'setup.py').exists()
    assert 'uv pip install --python .venv/bin/python -e .[tpu]' in result.stdout
    assert (cloud.worker / 'mounted').read_text().strip() == str(cloud.worker)


@pytest.mark.skipif(shutil.which('pgrep') is None, reason='the workers use pgrep (procps)')
def test_training_gets_its_arguments_outlives_the_connection_and_saves_when_stopped(cloud):
    code = cloud.worker / 'mim_jax'
    result, _ = cloud('start', *SLICE, '--', *TRAINING)
    assert result.returncode == 0, result.stderr
    try:
        result, _ = cloud('status', *SLICE)
        assert in_order(result.stdout, 'ACTIVE', 'running, process')
        result, _ = cloud('start', *SLICE, '--', *TRAINING)
        assert result.returncode != 0
        assert 'already running' in result.stderr
    finally:
        result, _ = cloud('stop', *SLICE)
    assert result.stdout.strip() == 'stopped'
    assert (code / 'train.log').read_text() == 'saved\n'
    given = (code / 'arguments').read_text().split('\0')[:-1]
    assert given == ['-m', 'mim_jax.main', *TRAINING]
    result, _ = cloud('status', *SLICE)
    assert in_order(result.stdout, 'not running', 'saved')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'no command'),
        (('create', '--zone=z'), 'give --name=NAME'),
        (('create', '--name=n'), 'give --zone=ZONE'),
        (('create', 'delete', *SLICE), 'two commands, create and delete'),
        (('create', *SLICE, '--type=tpu7x-16'), 'type tpu7x-16 is not known; give --version'),
        (('start', *SLICE, '--', '--workdir=w'), 'start needs --config=...'),
        (('start', *SLICE, '--', '--config=c'), 'start needs --workdir=...'),
        (('start', *SLICE, '--config=c'), '--config=c is neither a command nor an option'),
        (('delete', *SLICE, '--', '--config=c'), 'delete takes no training arguments'),
        (('log', *SLICE, '--worker=all'), '--worker=all must be a number'),
    ],
)
def test_a_mistake_is_one_sentence_and_calls_nothing(cloud, arguments, message):
    result, calls = cloud(*arguments)
    assert (result.returncode, result.stdout, calls) == (2, '', [])
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
