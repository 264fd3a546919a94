"""launch/slurm.sbatch, with srun, scancel and scontrol that act on this machine."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'slurm.sbatch'
TRAINING = (
    '--config=configs/dtm_vitb.py',
    '--workdir=/shared/runs/dtm',
    '--config.data.source.path=/data/my photos',
)

TOOLS = {
    # Saves and ends on SIGTERM, as the training does; its status is SRUN_STATUS.
    'srun': """#!/usr/bin/env bash
trap 'echo saved >>"$CALLS"; exit 0' TERM
printf '%q ' srun "$@" >>"$CALLS"; echo >>"$CALLS"
[ -z "${SRUN_STATUS:-}" ] || exit "$SRUN_STATUS"
echo $$ >"$CALLS.srun"
while true; do sleep 0.05; done
""",
    'scancel': '#!/bin/sh\necho scancel "$@" >>"$CALLS"; kill -TERM "$(cat "$CALLS.srun")"\n',
    'scontrol': '#!/bin/sh\necho scontrol "$@" >>"$CALLS"\n',
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM would: a copy of it, elsewhere, in a job's environment."""
    for name, text in TOOLS.items():
        tool = tmp_path / 'bin' / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(text)
        tool.chmod(0o755)
    spooled = tmp_path / 'slurm_script'
    spooled.write_text(SCRIPT.read_text())
    calls = tmp_path / 'calls'
    ours = {key: value for key, value in os.environ.items() if not key.startswith('SLURM_')}

    def start(*arguments, **variables):
        return subprocess.Popen(
            ['bash', spooled, *arguments],
            env={
                **ours,
                'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
                'CALLS': str(calls),
                'PYTHON': 'python3',
                'SLURM_JOB_ID': '77',
                'SLURM_SUBMIT_DIR': str(ROOT),
                'SLURM_CPUS_PER_TASK': '8',
                **variables,
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.calls = lambda: calls.read_text().splitlines() if calls.exists() else []
    start.running = Path(f'{calls}.srun')
    return start


def test_dry_run_prints_every_command_and_runs_none(job):
    output, errors = job(*TRAINING, DRY_RUN='1').communicate(timeout=60)
    assert (errors, job.calls()) == ('', [])
    commands = [shlex.split(line, comments=True) for line in output.splitlines()]
    assert [words for words in commands if words] == [
        ['cd', str(ROOT)],
        [
            *('srun', '--kill-on-bad-exit=1', '--cpus-per-task=8'),
            *('python3', '-m', 'mim_jax.main', '--config.data.workers=7'),
            *TRAINING,
        ],
        ['scancel', '--signal=TERM', '77'],
        ['scontrol', 'requeue', '77'],
    ]


@pytest.mark.parametrize(
    ('cpus', 'given', 'workers'),
    [('1', (), ['1']), ('12', (), ['11']), ('12', ('3',), ['3']), ('', (), [])],
)
def test_data_workers_follow_the_cpus_of_a_task(job, cpus, given, workers):
    given = [f'--config.data.workers={count}' for count in given]
    process = job(*TRAINING, *given, DRY_RUN='1', SLURM_CPUS_PER_TASK=cpus)
    output, _ = process.communicate(timeout=60)
    (command,) = [shlex.split(line) for line in output.splitlines() if line.startswith('srun')]
    found = [word for word in command if word.startswith('--config.data.workers=')]
    assert found == [f'--config.data.workers={count}' for count in workers]


def test_one_task_on_one_node_may_have_all_its_gpus(job):
    given = {'SLURM_NNODES': '1', 'SLURM_NTASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '8'}
    process = job(*TRAINING, **given, SRUN_STATUS='0')
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.parametrize('status', [0, 3])
def test_a_run_that_ends_is_not_queued_again(job, status):
    process = job(*TRAINING, SRUN_STATUS=str(status))
    process.communicate(timeout=60)
    assert process.returncode == status
    (call,) = job.calls()
    assert shlex.split(call)[-len(TRAINING) :] == list(TRAINING)


def test_before_the_time_limit_the_run_saves_and_is_queued_again(job):
    process = job(*TRAINING)
    deadline = time.monotonic() + 60
    while not job.running.exists() or not job.running.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert job.calls()[1:] == ['scancel --signal=TERM 77', 'saved', 'scontrol requeue 77']


def test_options_of_the_job_fit_one_task_per_gpu():
    options = dict(
        line.removeprefix('#SBATCH --').partition('=')[::2]
        for line in SCRIPT.read_text().splitlines()
        if line.startswith('#SBATCH')
    )
    assert options['ntasks-per-node'] == options['gpus-per-node']
    assert options['signal'].startswith('B:USR1@')
    assert 'requeue' in options
    # SLURM reads no option after the first command.
    before_commands = SCRIPT.read_text().partition('\nset -euo pipefail')[0]
    assert before_commands.count('\n#SBATCH') == len(options)


@pytest.mark.parametrize(
    ('arguments', 'variables', 'message'),
    [
        (('--workdir=w',), {}, 'give --config=configs/NAME.py'),
        (TRAINING, {'SLURM_JOB_ID': ''}, 'start it with sbatch'),
        (TRAINING, {'SLURM_SUBMIT_DIR': '/'}, "/ is not the repository's root"),
        (
            TRAINING,
            {'SLURM_NNODES': '2', 'SLURM_NTASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '8'},
            '1 tasks for the 8 GPUs of a node',
        ),
        (TRAINING, {'PYTHON': '/no/such/python'}, 'there is no /no/such/python'),
    ],
)
def test_a_mistake_is_one_sentence_and_runs_nothing(job, arguments, variables, message):
    process = job(*arguments, **variables)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, job.calls()) == (2, '', [])
    assert message in errors
    assert len(errors.splitlines()) == 1
