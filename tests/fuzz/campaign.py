"""Cases without end for one subject: each must end well or in one sentence, in bounded time and
memory.
"""

import collections
import contextlib
import dataclasses
import resource
import signal
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mim_jax.errors import UserError

SECONDS = 60  # of the processor that a case may take
WAITING = 600  # seconds that it may take on a machine that has other work
GIGABYTES = 2.0  # that a case may add to the most memory that the process ever had
LONGEST = 2000  # characters of a sentence

Act = Callable[[], str]
# A subject makes from an empty folder a function of a generator: a case, as words and what to do.
# That returns what came of it in a word; or raises UserError.
Subject = Callable[[Path], Callable[[np.random.Generator], tuple[str, Act]]]


@dataclasses.dataclass
class Report:
    """What came of the cases of one subject: numbers by outcome, and the failures in words."""

    name: str
    outcomes: collections.Counter
    failures: list[str]
    seconds: float

    def __str__(self) -> str:
        counts = ', '.join(f'{n} {outcome}' for outcome, n in sorted(self.outcomes.items()))
        total = self.outcomes.total() + len(self.failures)
        return (
            f'{self.name}: {total} cases in {self.seconds:.0f} s: {counts}, '
            f'{len(self.failures)} failures'
        )


def campaign(name: str, subject: Subject, *, cases: int, first: int = 0) -> Report:
    """Runs the cases numbered from `first`; case i is a function of (name, i) alone."""
    outcomes, failures, start = collections.Counter(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix='mim_jax_fuzz_') as folder:
        make = subject(Path(folder))
        for number in range(first, first + cases):
            words, act = make(np.random.default_rng((zlib.crc32(name.encode()), number)))
            try:
                with _bounded():
                    outcomes[act()] += 1
            except UserError as error:
                outcomes['told'] += 1
                longest = max(LONGEST, 2 * len(words))
                if len(str(error).splitlines()) != 1 or len(str(error)) > longest:
                    outcomes['told'] -= 1
                    failures.append(f'{name} {number}: {words}: no sentence: {str(error)[:500]!r}')
            except (Exception, SystemExit) as error:
                failures.append(f'{name} {number}: {words}: {type(error).__name__}: {error}'[:900])
    return Report(name, +outcomes, failures, time.monotonic() - start)


@contextlib.contextmanager
def _bounded():
    """Raises TimeoutError or MemoryError where what is done inside takes too much."""

    def late(*_):
        raise TimeoutError(f'more than {SECONDS} seconds of work, or {WAITING} in all')

    before = {name: signal.signal(name, late) for name in (signal.SIGPROF, signal.SIGALRM)}
    most, start = _most_memory(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for name, handler in before.items():
            signal.signal(name, handler)
    if time.process_time() - start > SECONDS:
        late()  # what is raised in a callback is lost
    if _most_memory() - most > GIGABYTES:
        raise MemoryError(f'more than {GIGABYTES} GB')


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
