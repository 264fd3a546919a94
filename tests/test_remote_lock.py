"""Two runs do not share a work directory in an object store."""

import os
import socket
import subprocess
import sys

import pytest

from mim_jax import remote_lock
from mim_jax.errors import UserError

ELSEWHERE = 'process 7 on elsewhere\nab\n1003\n'


@pytest.fixture
def lock(store, monkeypatch):
    """The lock of a work directory, what happens there while a run waits, and the time."""
    now = [0.0]
    monkeypatch.setattr(remote_lock.time, 'monotonic', lambda: now[0])

    def sleep(seconds):
        now[0] += seconds
        for change in changes:
            change(store / 'lock')

    changes = []
    monkeypatch.setattr(remote_lock.time, 'sleep', sleep)
    return store / 'lock', changes, now


def test_it_is_there_as_long_as_it_is_held(lock):
    path, _, now = lock
    assert not remote_lock.is_held(path)
    with remote_lock.locked(path):
        held = path.read_text()
        assert held.startswith(f'process {os.getpid()} on {socket.gethostname()}\n')
        assert remote_lock.is_held(path)
    assert not path.exists() and now[0] == 0


def test_one_of_long_ago_is_not_held(lock):
    path, _, _ = lock
    path.write_text(ELSEWHERE)
    assert not remote_lock.is_held(path)
    path.write_text('')
    assert not remote_lock.is_held(path)


def test_one_that_gives_signs_is_left_alone(lock):
    path, changes, now = lock
    path.write_text(ELSEWHERE)
    changes.append(lambda lock: lock.write_text(ELSEWHERE.replace('1003', '1018')))
    with (
        pytest.raises(UserError, match='run is in use by process 7 on elsewhere: stop that run'),
        remote_lock.locked(path),
    ):
        raise AssertionError
    assert path.read_text() == ELSEWHERE.replace('1003', '1018')
    assert now[0] <= remote_lock.STALE


def test_one_without_a_sign_is_taken_over(lock):
    path, _, now = lock
    path.write_text(ELSEWHERE)
    with remote_lock.locked(path):
        assert 'elsewhere' not in path.read_text()
    assert now[0] >= remote_lock.STALE and not path.exists()


def test_one_of_a_dead_process_of_this_host_is_not_waited_for(lock):
    path, _, now = lock
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    path.write_text(f'process {dead.pid} on {socket.gethostname()}\nab\n0\n')
    with remote_lock.locked(path):
        pass
    assert now[0] < remote_lock.STALE


def test_of_two_that_take_one_over_one_ends(lock):
    path, changes, now = lock
    path.write_text(ELSEWHERE)

    def another(lock):
        if now[0] > remote_lock.STALE:  # after this process has written its name
            lock.write_text('process 9 on third\ncd\n0\n')

    changes.append(another)
    with pytest.raises(UserError, match='in use by process 9 on third'), remote_lock.locked(path):
        raise AssertionError
    assert path.read_text().startswith('process 9 on third')


def test_of_two_that_find_none_one_ends(lock, monkeypatch):
    path, _, _ = lock
    read = remote_lock._read

    def late(lock):
        """Nothing is there yet, and then another one's."""
        monkeypatch.setattr(remote_lock, '_read', read)
        found = read(lock)
        lock.write_text(ELSEWHERE)
        return found

    monkeypatch.setattr(remote_lock, '_read', late)
    with (
        pytest.raises(UserError, match='in use by process 7 on elsewhere'),
        remote_lock.locked(path),
    ):
        raise AssertionError
