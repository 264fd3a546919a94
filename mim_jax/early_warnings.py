"""What the lines of a log give reason to warn of: collapse, a loss that does not fall, a wait."""

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

LINES = 5  # in a row that have to say the same
RANK = 1.2  # effective rank at which features have one direction
SPREAD = 0.02  # health/feature_std at which images have the same feature
FALL = 0.01  # share of the first loss by which a run that learns has got below it, sooner or later
PLATEAU_LINES = 10  # after the warm-up, before a loss that did not fall is mentioned
WAIT = 0.3  # share of the step time


class Watch:
    """Looks at every line of a run as it comes, and warns of each thing once.

    lines: those there are already, of a run that goes on.
    warmup: the steps of the learning rate's warm-up.
    """

    def __init__(self, lines: Sequence[Line], *, warmup: int, workers: int):
        self._lines = [line for line in lines if 'train/loss' in line]
        self._about = {'warmup': warmup, 'workers': workers}
        self._said = set(warnings(self._lines, **self._about))

    def add(self, line: Line) -> list[str]:
        """What there is to say after this line, in whole sentences."""
        self._lines.append(line)
        found = warnings(self._lines, **self._about)
        new = [text for name, text in found.items() if name not in self._said]
        self._said |= set(found)
        return new


def warnings(lines: Sequence[Line], *, warmup: int, workers: int) -> dict[str, str]:
    """The warnings, by name, that the last of these lines of training give reason for.

    A value may be missing from a line, or None where it was not finite.
    """
    found = {}
    last = lines[-LINES:]

    def throughout(name: str, holds: Any) -> bool:
        values = [line.get(name) for line in last]
        return len(values) == LINES and all(v is not None and holds(v) for v in values)

    if throughout('health/effective_rank', lambda v: v < RANK) or throughout(
        'health/feature_std', lambda v: v < SPREAD
    ):
        found['collapse'] = (
            f'Warning: all images have nearly the same feature (health/effective_rank '
            f'{last[-1]["health/effective_rank"]:.3g}, health/feature_std '
            f'{last[-1]["health/feature_std"]:.3g}): the network may have collapsed. See '
            'docs/health.md.'
        )
    after = [line for line in lines if line['step'] > warmup]
    losses = [line['train/loss'] for line in lines if line.get('train/loss') is not None]
    if len(after) >= PLATEAU_LINES and len(losses) > PLATEAU_LINES:
        first, lowest = losses[0], min(losses[1:])
        if lowest > first - FALL * abs(first):
            found['plateau'] = (
                f'Warning: the loss was {first:.4g} at the start and has never been lower than '
                f'{lowest:.4g} since, though the warm-up is over. See docs/health.md.'
            )
    if throughout('speed/wait_share', lambda v: v > WAIT):
        found['data'] = (
            f'Warning: the device waits for data {last[-1]["speed/wait_share"]:.0%} of the time; '
            f'raise data.workers (now {workers}). See docs/health.md.'
        )
    return found
