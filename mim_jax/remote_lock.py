"""Keeps two runs out of one work directory in an object store, which has no locks.

The lock is an object that its run writes anew every few seconds, with the time. A run that finds it
looks whether it changes: if it does not for STALE seconds, its run is taken for gone, as it is at
once where that was a process of this host that is no more. Of two runs that take a lock at the
same moment one finds the other's name in it, and ends.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from mim_jax import storage
from mim_jax.errors import UserError
from mim_jax.stopping import end, say

# Seconds: between two signs of life; without one until a run counts as gone; between two looks.
INTERVAL, STALE, LOOK = 15, 60, 2


@contextlib.contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Holds the lock, an object. Raises UserError where another run holds it."""
    holder = f'process {os.getpid()} on {socket.gethostname()}'
    own = f'{holder}\n{secrets.token_hex(8)}'
    before = _read(lock)
    if before is not None:
        _wait_until_stale(lock, before)
    try:
        # Where nobody holds it, one of several that try this at once succeeds.
        mode = 'create' if before is None else 'overwrite'
        lock.fs.pipe_file(lock.path, _signed(own).encode(), mode=mode)
    except FileExistsError:
        raise _in_use(lock, _read(lock)) from None
    if before is not None:  # another may have seen it stale at the same time
        time.sleep(LOOK)
        found = _read(lock)
        if not _held_by(found, own):
            raise _in_use(lock, found)
    ends = threading.Event()
    thread = threading.Thread(target=_give_signs, args=(lock, own, ends), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        with contextlib.suppress(Exception):  # what it says is stale in a minute
            if _held_by(_read(lock), own):
                lock.unlink()


def is_held(lock: Path) -> bool:
    """Whether the run that wrote the lock gave a sign of life within STALE seconds, by the clocks
    of its host and of this one.
    """
    last = (_read(lock) or '').splitlines()[-1:]
    return bool(last) and last[0].isdecimal() and time.time() - int(last[0]) < STALE


def _give_signs(lock: Path, own: str, ends: threading.Event) -> None:
    while not ends.wait(INTERVAL):
        try:
            found = _read(lock)
            if found is None or _held_by(found, own):
                lock.write_text(_signed(own), encoding='utf-8')
                continue
        except Exception as error:  # the store cannot be reached: the run itself will say so
            logging.warning('%s: no sign could be given (%s).', lock, storage.trouble(error))
            continue
        say(f'error: {_in_use(lock, found)}')
        end(2)


def _wait_until_stale(lock: Path, before: str) -> None:
    """Raises UserError where the lock changes meanwhile: its run lives."""
    if _is_of_a_dead_process(before):
        return
    say(f'{lock} is that of {_holder(before)}: looking for {STALE} s whether it still runs …')
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(LOOK)
        found = _read(lock)
        if found is None:
            return
        if found != before:
            raise _in_use(lock, found)


def _is_of_a_dead_process(content: str) -> bool:
    """Of this host, and no more; or this process' own number, that of one before it."""
    words = _holder(content).split()  # process PID on HOST
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)  # only asks
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return int(words[1]) == os.getpid()


def _signed(own: str) -> str:
    return f'{own}\n{time.time():.0f}\n'


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding='utf-8')
    except FileNotFoundError:
        return None


def _held_by(content: str | None, own: str) -> bool:
    return content is not None and content.startswith(own)


def _holder(content: str | None) -> str:
    return (content or '').partition('\n')[0].strip() or 'another process'


def _in_use(lock: Path, content: str | None) -> UserError:
    return UserError(
        f'--workdir={lock.parent} is in use by {_holder(content)}: stop that run, or choose '
        'another work directory.'
    )
