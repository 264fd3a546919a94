"""The list of faults, and how each is tried: every one is a function that provokes it once."""

import dataclasses
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable

FAULTS: dict[str, 'Fault'] = {}


@dataclasses.dataclass(frozen=True)
class Fault:
    """One kind of fault.

    expected: what the run does, a sentence. how: how it is provoked, the docstring of `provoke`.
    trials, short: how often, in the whole campaign and in CI (0: other tests there do it).
    provoke: (lab, number of the trial, random numbers of its own) -> which case it was, in a word
        or two. Raises where what is expected does not happen.
    """

    name: str
    expected: str
    trials: int
    short: int
    provoke: Callable[..., str]

    @property
    def how(self) -> str:
        return ' '.join(self.provoke.__doc__.split())

    def tried(self, lab, number: int, seed: int) -> tuple[str, str | None]:
        """One trial: its case, and what went wrong (None: nothing). It is drawn by seed, name and
        number alone, so that one that failed can be tried again.
        """
        draws = random.Random(f'{seed} {self.name} {number}')
        try:
            return self.provoke(lab, number, draws), None
        except Exception:
            return 'failed', traceback.format_exc()


def fault(name: str, *, expected: str, trials: int, short: int = 1):
    """Lists a function as the trial of a fault."""

    def listed(provoke):
        FAULTS[name] = Fault(name, expected, trials, short, provoke)
        return provoke

    return listed


@dataclasses.dataclass
class Result:
    """What came of the trials of a fault so far."""

    cases: Counter
    failures: list[tuple[int, str]]
    seconds: float

    @property
    def trials(self) -> int:
        return self.cases.total()

    def text(self) -> str:
        """`50 trials, 0 failures (compile 10, step 12)`."""
        cases = ', '.join(f'{name} {count}' for name, count in sorted(self.cases.items()))
        trials, failures = self.trials, len(self.failures)
        return f'{_counted(trials, "trial")}, {_counted(failures, "failure")} ({cases})'


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')


def tried(
    fault: Fault, lab, *, trials: int, seed: int, first: int = 0, say=lambda *_: None
) -> Result:
    """Tries a fault so many times; `say(number, case, failure)` after each."""
    result = Result(Counter(), [], 0.0)
    began = time.monotonic()
    for number in range(first, first + trials):
        case, failure = fault.tried(lab, number, seed)
        result.cases[case] += 1
        if failure:
            result.failures.append((number, failure))
        result.seconds = time.monotonic() - began
        say(number, case, failure)
    return result
