"""Means over the steps since the last line of the log."""

from collections.abc import Collection, Mapping
from typing import Any


class Interval:
    """Adds up the metrics of steps, in float64 and in their order.

    momentary: metrics of which the last step's own value counts, not the mean.
    state: what has been added up (fit for JSON, exact); a resumed run goes on from it, so that its
      lines equal those of one that never stopped.
    """

    def __init__(self, momentary: Collection[str] = (), state: Mapping[str, Any] | None = None):
        self._momentary = frozenset(momentary)
        state = state or {'steps': 0, 'sums': {}}
        self._steps, self._sums = state['steps'], dict(state['sums'])

    @property
    def state(self) -> dict[str, Any]:
        return {'steps': self._steps, 'sums': dict(self._sums)}

    def add(self, metrics: Mapping[str, float]) -> None:
        self._steps += 1
        for name, value in metrics.items():
            before = 0.0 if name in self._momentary else self._sums.get(name, 0.0)
            self._sums[name] = before + value

    def take(self) -> dict[str, float]:
        """The means, {} of no step; what follows belongs to the next line."""
        means = {
            name: value if name in self._momentary else value / self._steps
            for name, value in self._sums.items()
        }
        self._steps, self._sums = 0, {}
        return means
