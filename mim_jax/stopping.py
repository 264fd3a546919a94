"""Stopping a run by Ctrl-C or SIGTERM: at once where nothing would be lost, else after a save.

Light to import: a run listens before it loads JAX.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}


class Interrupted(Exception):
    """Raised by what would take long, once `Stop.requested` holds."""


class Stop:
    """Whether a run is asked to stop.

    The first signal ends the process at once while there is nothing to save (`saving` is False):
    in imports, in compilation, before the first step. Then it only asks for a stop, and the run
    saves. A second one ends the process at once. A thread of its own answers signals, because
    Python's handlers wait until the compiler, or whatever the main thread is in, returns.

    kept: says what would be left of the run if it ended now.
    parting: is told why before a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.kept: Callable[[], str] = lambda: 'this command has changed nothing'
        self.parting: Callable[[str], None] = lambda why: None
        self.saving = False
        self._number = None
        self._joined = False

    @property
    def requested(self) -> str | None:
        """The name of the signal that asks this process to stop after a save, or None."""
        return None if self._number is None else SIGNALS[self._number]

    def check(self) -> None:
        """Raises Interrupted where a stop is requested. Not in one of several processes: it would
        leave the others waiting, so that `received` alone decides there.
        """
        if self.requested and not self._joined:
            raise Interrupted

    def received(self, step: int) -> str | None:
        """Whether to save and stop after `step`: the name of the signal, or None. To be asked by
        every process at every step: all of them learn it at the same one.

        Preemption and time limits may reach the processes at different moments, or only one of
        them, while saving takes all. With several processes JAX's preemption service therefore
        agrees on the step.
        """
        import jax

        if not jax.distributed.is_initialized():
            return self.requested
        from jax.experimental import multihost_utils

        return 'SIGTERM' if multihost_utils.reached_preemption_sync_point(step) else None

    def joined(self) -> None:
        """To be called once this process is one of several: from here on SIGTERM is JAX's, which
        took it over when it joined them, and Ctrl-C is passed on as SIGTERM.
        """
        self._joined = True

    @contextlib.contextmanager
    def listening(self) -> Iterator['Stop']:
        """Answers signals; the handlers of before come back at the end.

        For a program alone: a second signal ends the process.
        """
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = {number: signal.signal(number, _ignored) for number in SIGNALS}
        previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._answer, args=(reading,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in before.items():
                if signal.getsignal(number) is _ignored:
                    signal.signal(number, handler)
            os.write(writing, b'\0')
            thread.join()
            os.close(reading)
            os.close(writing)

    def kept_words(self) -> str:
        """What `kept` says, however that fares."""
        try:
            return self.kept()
        except Exception:  # the disk is gone, say: the process ends all the same
            return 'what is saved could not be looked at'

    def _answer(self, reading: int) -> None:
        while number := os.read(reading, 1)[0]:
            if number not in SIGNALS:
                continue
            if self._number is None and self._joined:
                self._number = number
                if number == signal.SIGINT:
                    say('Ctrl-C: all processes save and end; once more ends them at once.')
                    os.kill(os.getpid(), signal.SIGTERM)
            elif self._number is None and self.saving:
                self._number = number
                say(f'{SIGNALS[number]}: the run saves and ends; once more ends it at once.')
            elif not (self._joined and number == signal.SIGTERM):
                say(f'{SIGNALS[number]}: ended at once; {self.kept_words()}.')
                self.parting(f'it got {SIGNALS[number]}')
                end(128 + number)


def end(status: int) -> None:
    """Ends this process and its data workers now, whatever they wait for."""
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(status)


def say(text: str) -> None:
    """Prints a line to standard error from any thread, whatever the main one is in."""
    # The terminal has printed ^C, and may be in the middle of a progress bar. Or it is gone.
    with contextlib.suppress(OSError):
        os.write(2, f'\n{text}\n'.encode())


def _ignored(number: int, frame: object) -> None:
    """A handler in Python, so that the signal reaches the thread and nothing else."""
