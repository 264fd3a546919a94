"""launch/tpu_vm.sh, with a gcloud whose workers are folders on this machine."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'tpu_vm.sh'
needs_commit = pytest.mark.skipif(
    not (ROOT / '.git').exists(), reason='sends a commit, and this is no checkout'
)
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
  *' scp '*) cp "$5" "$WORKER/${6#*:}" ;;
  *' ssh '*)
    for word in "$@"; do
      case $word in --command=*) HOME=$WORKER bash -c "cd && ${word#--command=}" ;; esac
    done
    ;;
esac
"""

# The worker's Python: keeps its arguments, and saves when it is asked to end.
PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
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


def wait_for(path):
    """Until a process that goes on by itself has written there."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_order(text, *parts):
    """Whether the parts stand in the text one after another."""
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


@needs_commit
def test_dry_run_prints_every_step_in_order(cloud):
    text = dry_run(cloud, 'all', '--setup=mount /mnt/shared', '--', *TRAINING[:2])
    install = (
        'git -C',
        'archive',
        'scp',
        '--worker=all',
        'uv pip install',
        '.[tpu,gcs]',
        'mount /mnt',
    )
    start = 'python -m mim_jax.main --stopped_status=75 --config=configs/dtm_vitb.py --workdir=/mnt'
    assert in_order(
        text,
        'queued-resources create my-slice --node-id=my-slice',
        'queued-resources describe my-slice',
        *install,
        start,
        '# every 30 s, until training has ended:',
        'queued-resources describe my-slice',
        'queued-resources ssh my-slice --node=0 --worker=0',
        '# where worker 0 does not answer:',
        "tpu-vm list '--filter=queuedResource~/my-slice$'",
        '# where the slice was taken away:',
        'queued-resources delete my-slice --force',
        'queued-resources create my-slice --node-id=my-slice',
        '# then, and where training ended before its last step:',
        'kill -TERM',
        *install,
        start,
    )
    commands = [line for line in text.splitlines() if '--zone' in line]
    assert len(commands) == text.count('gcloud compute tpus') == 16
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
        ('create', '--slices=4', '--gcloud=--network=my net', '--gcloud=--internal-ips'),
        ('start', '--', *TRAINING),
        ('start', '--env=A=$x "y"', '--env=HOME', '--ssh=--internal-ip', '--', *TRAINING[:2]),
        ('log', '--slice=1', '--worker=3'),
        ('status',),
        ('stop',),
        ('delete',),
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
    text = dry_run(cloud, 'create', f'--type={kind}', '--version=other', '--spot')
    assert f'--accelerator-type={kind} --runtime-version=other --spot ' in text


def test_flags_of_gcloud_go_where_they_belong(cloud):
    """Slices and flags of the request to `create`, those of connections to every ssh and scp."""
    given = ('--slices=2', '--gcloud=--reserved', '--gcloud=--network=n', '--ssh=--internal-ip')
    (create, *_) = dry_run(cloud, 'create', *given).splitlines()
    assert '--node-count=2' in create and '--node-id' not in create
    assert '--reserved --network=n' in create and '--internal-ip' not in create
    for command in ('log', 'status', 'stop'):
        text = dry_run(cloud, command, *given)
        assert text.count(' ssh my-slice ') == text.count('--internal-ip') == 1
        assert '--reserved' not in text


@needs_commit
def test_install_sends_the_commit_and_installs_it(cloud):
    result, _ = cloud('install', *SLICE, '--setup=echo "$HOME" >mounted')
    assert result.returncode == 0, result.stderr
    code = cloud.worker / 'mim_jax'
    assert (code / 'setup.py').exists()
    constrained = '--python .venv/bin/python -c launch/constraints.txt -e .[tpu,gcs]'
    assert f'uv pip install {constrained}' in result.stdout
    assert (code / 'launch' / 'constraints.txt').exists()
    assert (cloud.worker / 'mounted').read_text().strip() == str(cloud.worker)


@needs_commit
def test_another_commit_and_other_extras(cloud):
    head = subprocess.run(
        ['git', '-C', ROOT, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True
    )
    text = dry_run(cloud, 'install', '--commit=HEAD', '--extras=tpu,wandb')
    assert head.stdout.strip() in text  # not a name that means another commit by tomorrow
    assert '".[tpu,wandb]"' in text


@needs_commit
@pytest.mark.skipif(shutil.which('pgrep') is None, reason='the workers use pgrep (procps)')
def test_secrets_reach_training_and_are_neither_printed_nor_open_to_others(cloud, tmp_path):
    secret = tmp_path / 'secrets'
    secret.write_text('WANDB_API_KEY="abc def"\n')
    sent = ('install', *SLICE, f'--env-file={secret}')
    printed, _ = cloud(*sent, '--dry-run')
    result, _ = cloud(*sent)
    assert result.returncode == 0, result.stderr
    assert 'abc' not in printed.stdout + printed.stderr + result.stdout + result.stderr
    assert (cloud.worker / 'mim_jax.env').stat().st_mode & 0o777 == 0o600
    python = cloud.worker / 'mim_jax' / '.venv' / 'bin' / 'python'
    executable(python, '#!/bin/sh\necho "$WANDB_API_KEY, $A" >variables\n')
    result, _ = cloud('start', *SLICE, "--env=A=$x 'y'", '--', *TRAINING)
    assert result.returncode == 0, result.stderr
    wait_for(cloud.worker / 'mim_jax' / 'train.status')
    assert (cloud.worker / 'mim_jax' / 'variables').read_text() == "abc def, $x 'y'\n"


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
    wait_for(code / 'train.status')
    assert (code / 'train.status').read_text() == '75\n'
    assert (code / 'train.log').read_text() == 'saved\n'
    given = (code / 'arguments').read_text().split('\0')[:-1]
    assert given == ['-m', 'mim_jax.main', '--stopped_status=75', *TRAINING]
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
        (('create', *SLICE, '--slices=two'), '--slices=two must be a number'),
        (('start', *SLICE, '--env=a-b=1'), '--env=a-b=1 must be --env=NAME[=VALUE]'),
        (('start', *SLICE, '--env=NOT_THERE'), 'there is no such variable in this shell'),
        (('install', *SLICE, '--env-file=/no/such'), '/no/such: there is no such file'),
        (('install', *SLICE, '--extras=$(x)'), '--extras=$(x) must be names of extras'),
        (('install', *SLICE, '--commit=no-such'), '--commit=no-such is no commit of'),
    ],
)
def test_a_mistake_is_one_sentence_and_calls_nothing(cloud, arguments, message):
    result, calls = cloud(*arguments)
    assert (result.returncode, result.stdout, calls) == (2, '', [])
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
