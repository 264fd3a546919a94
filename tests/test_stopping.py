"""Signals: what each does at which moment, in processes of their own."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mim_jax.stopping import Interrupted, Stop

ROOT = Path(__file__).parent.parent
# The main thread is inside of a library that takes its time, as in a compilation.
PROGRAM = """
import hashlib, sys
from mim_jax.stopping import Stop

stop = Stop()
with stop.listening():
    stop.saving = {saving}
    if {saving}:
        stop.kept = lambda: 'the checkpoint of step 5 is kept'
    print('ready', flush=True)
    for _ in range({rounds}):
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9 if {rounds} == 1 else 10**5)
        if {rounds} > 1 and stop.received(0):
            print('saving', stop.requested, flush=True)
            break
    if {again}:
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
print('over')
"""


def start(*, saving, rounds, again=False):
    program = PROGRAM.format(saving=saving, rounds=rounds, again=again)
    process = subprocess.Popen(
        [sys.executable, '-c', program],
        env={'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize(
    ('number', 'name'), [(signal.SIGINT, 'Ctrl-C'), (signal.SIGTERM, 'SIGTERM')]
)
def test_the_first_signal_ends_a_process_that_has_nothing_to_save(number, name):
    process = start(saving=False, rounds=1)
    process.send_signal(number)
    output, told = process.communicate(timeout=30)
    assert process.returncode == 128 + number and output == ''
    assert told.strip() == f'{name}: ended at once; this command has changed nothing.'


def test_the_first_signal_of_a_training_run_asks_and_the_second_ends():
    process = start(saving=True, rounds=10**6, again=True)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'saving Ctrl-C\n'
    assert process.stderr.readline() + process.stderr.readline() == (
        '\nCtrl-C: the run saves and ends; once more ends it at once.\n'
    )
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and output == ''
    assert told.strip() == 'Ctrl-C: ended at once; the checkpoint of step 5 is kept.'


def test_a_run_that_saves_after_a_signal_ends_by_itself():
    process = start(saving=True, rounds=10**6)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and output == 'saving SIGTERM\nover\n'


def test_handlers_of_before_come_back():
    assert threading.current_thread() is threading.main_thread()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = Stop()
    with stop.listening():
        assert signal.getsignal(signal.SIGINT) not in before
        stop.saving = True
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        while not stop.requested:
            pass
        with pytest.raises(Interrupted):
            stop.check()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
