"""launch/tpu_vm.sh, waiting for a slice and watching it, with a gcloud that answers by a script."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'launch' / 'tpu_vm.sh'
OPTIONS = ('--name=my-slice', '--zone=us-west4-a', '--poll=0', '--patience=3', '--restarts=2')
TRAINING = ('--', '--config=configs/dtm_vitb.py', '--workdir=gs://bucket/run')

pytestmark = pytest.mark.skipif(
    not (ROOT / '.git').exists(), reason='sends a commit, and this is no checkout'
)

# Writes down what it is called for.  The answer is the next line of the file of that name, `fail`
# an error; without a line it is an empty one.
GCLOUD = """#!/usr/bin/env bash
what=$4
case "$*" in
  *'echo running'*) what=look ;;
  *'uv pip'*) what=install ;;
  *'kill -TERM'*) what=stop ;;
  *nohup*) what=start ;;
esac
echo "$what" >>"$CALLS"
answers=$ANSWERS/$what
[ -s "$answers" ] || exit 0
read -r answer <"$answers"
sed -i 1d "$answers"
[ "$answer" != fail ] || exit 1
echo "$answer"
"""
SETUP = ['stop', 'scp', 'install', 'start']


@pytest.fixture
def cloud(tmp_path):
    """Runs a command; gives the finished process, and what gcloud was called for but `describe`."""
    gcloud = tmp_path / 'bin' / 'gcloud'
    gcloud.parent.mkdir()
    gcloud.write_text(GCLOUD)
    gcloud.chmod(0o755)
    (tmp_path / 'answers').mkdir()

    def run(command, **answers):
        for name, lines in answers.items():
            (tmp_path / 'answers' / name).write_text(''.join(f'{line}\n' for line in lines))
        training = TRAINING if command in ('watch', 'all') else ()
        result = subprocess.run(
            [SCRIPT, command, *OPTIONS, *training],
            env={
                **os.environ,
                'PATH': f'{gcloud.parent}:{os.environ["PATH"]}',
                'CALLS': str(tmp_path / 'calls'),
                'ANSWERS': str(tmp_path / 'answers'),
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        calls = (tmp_path / 'calls').read_text().split()
        run.looks_at_state = calls.count('describe')
        return result, [call for call in calls if call != 'describe']

    return run


def test_a_look_at_the_state_that_fails_is_tried_again(cloud):
    states = ['WAITING_FOR_RESOURCES', 'fail', '', 'PROVISIONING', 'fail', 'ACTIVE']
    result, calls = cloud('create', describe=states)
    assert result.returncode == 0, result.stderr
    assert calls == ['create'] and cloud.looks_at_state == len(states)
    assert result.stderr.count('the state of my-slice could not be read; trying again') == 3


def test_looks_that_fail_one_after_another_end_the_wait(cloud):
    result, calls = cloud('create', describe=['fail'] * 9)
    assert result.returncode == 2
    assert calls == ['create'] and cloud.looks_at_state == 4
    assert 'could not be read, 4 times in a row' in result.stderr.splitlines()[-1]


def test_a_request_that_failed_ends_the_wait(cloud):
    result, calls = cloud('create', describe=['ACCEPTED', 'FAILED'])
    assert result.returncode == 2 and calls == ['create']
    assert 'the request for my-slice is FAILED' in result.stderr.splitlines()[-1]


def test_a_slice_that_is_taken_away_while_it_is_made_is_requested_again(cloud):
    result, calls = cloud('create', describe=['PROVISIONING', 'SUSPENDED', 'ACTIVE'])
    assert result.returncode == 0, result.stderr
    assert calls == ['create', 'delete', 'create']


def test_all_of_it_to_the_end_of_training(cloud):
    result, calls = cloud('all', describe=['ACTIVE'] * 9, look=['running', 'running', '0'])
    assert result.returncode == 0, result.stderr
    assert calls == ['create', *SETUP, 'look', 'look', 'look']
    assert 'training has ended; my-slice costs until launch/tpu_vm.sh delete' in result.stderr


def test_a_slice_that_is_taken_away_is_requested_again_and_training_resumes(cloud):
    """Its first process may have saved and ended, or be out of reach, before the state says so."""
    states = ['ACTIVE', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ACCEPTED', *['ACTIVE'] * 9]
    result, calls = cloud('watch', describe=states, look=['running', '75', 'running', '0'])
    assert result.returncode == 0, result.stderr
    assert calls == ['look', 'look', 'delete', 'create', *SETUP, 'look', 'look']


def test_one_slice_of_several_may_be_gone_before_the_request_says_so(cloud):
    result, calls = cloud('watch', describe=['ACTIVE'] * 9, look=['fail', '0'], list=['PREEMPTED'])
    assert result.returncode == 0, result.stderr
    assert calls == ['look', 'list', 'delete', 'create', *SETUP, 'look']


@pytest.mark.parametrize('answer', ['fail', ''])
def test_a_worker_that_does_not_answer_is_left_alone(cloud, answer):
    answers = dict(describe=['ACTIVE'] * 9, look=[answer] * 9, list=['READY'] * 9)
    result, calls = cloud('watch', **answers)
    assert result.returncode == 2
    assert calls == ['look', 'list'] * 4
    assert 'what runs there is left alone' in result.stderr.splitlines()[-1]


def test_what_fails_on_the_way_to_a_new_slice_is_tried_again(cloud):
    states = ['SUSPENDED', *['ACTIVE'] * 9]
    answers = dict(delete=['fail'], create=['fail', ''], install=['fail', ''], start=['fail', ''])
    result, calls = cloud('watch', describe=states, look=['running', '0'], **answers)
    assert result.returncode == 0, result.stderr
    requests = ['delete', 'create'] * 2
    assert calls == [*requests, *SETUP[:-1], *SETUP, *SETUP, 'look', 'look']


def test_errors_of_training_on_one_slice_are_counted(cloud):
    result, calls = cloud('watch', describe=['ACTIVE'] * 9, look=['2', 'gone', '134'])
    assert result.returncode == 2
    assert calls == ['look', *SETUP, 'look', *SETUP, 'look']
    assert 'training ended before its last step; see' in result.stderr.splitlines()[-1]


def test_a_run_that_the_user_stopped_is_not_started_again(cloud):
    result, calls = cloud('watch', describe=['ACTIVE'], look=['stopped'])
    assert result.returncode == 0, result.stderr
    assert calls == ['look']
