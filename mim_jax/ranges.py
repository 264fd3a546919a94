"""What a number of a config may be, said where its field is declared.

    depth: Count = 12
    clip_norm: Positive | None = None

`mim_jax.config.build` refuses what lies outside, in one sentence, and never takes NaN or infinity.
"""

import dataclasses
from typing import Annotated

# More of anything than fits in 32 bits is a slip of the hand.
MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high` (None: no bound); without the bound itself where it is open."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        beyond = self.high is not None and value >= self.high
        return not beyond or (value == self.high and not self.high_open)

    @property
    def usual(self) -> 'Range':
        """Without an upper bound that only keeps slips of the hand out."""
        return (
            self if self.high is None or self.high < MOST else dataclasses.replace(self, high=None)
        )

    def __str__(self) -> str:
        texts = []
        if self.low is not None:
            texts.append(f'{"above" if self.low_open else "at least"} {_written(self.low)}')
        if self.high is not None:
            texts.append(f'{"below" if self.high_open else "at most"} {_written(self.high)}')
        return ' and '.join(texts)


def _written(bound: float) -> str:
    return f'{bound:,}' if isinstance(bound, int) else f'{bound:g}'


Count = Annotated[int, Range(1, MOST)]
Number = Annotated[int, Range(0, MOST)]
Examples = Annotated[int, Range(0, 2**53)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
AnyNumber = Annotated[float, Range()]
"""A float that may be what it likes, as long as it is finite."""
Positive = Annotated[float, Range(0, 1e12, low_open=True)]
NotNegative = Annotated[float, Range(0, 1e12)]
AtLeastOne = Annotated[float, Range(1, 1e12)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, low_open=True)]
# Neither none of it nor all.
OpenShare = Annotated[float, Range(0, 1, low_open=True, high_open=True)]
# A decay, a rate of dropping: at 1 nothing would ever move, or be left.
Fraction = Annotated[float, Range(0, 1, high_open=True)]
Percent = Annotated[float, Range(0, 100)]
"""Durations in percent of the run."""

# Sizes of what is laid out in memory, compiled or started: a slip of the hand in one of these would
# not be told, but fill the memory or never come to an end.
Side = Annotated[int, Range(1, 2**15)]
"""A side of an image, a patch, a grid or a window."""
Pixels = Annotated[int, Range(0, 2**15)]
Batch = Annotated[int, Range(1, 2**20)]
Width = Annotated[int, Range(1, 2**16)]
Depth = Annotated[int, Range(1, 1000)]
"""Blocks of a network, and the number of one of them."""
Repeats = Annotated[int, Range(1, 1000)]
"""What is done so often within one step of training or one evaluation."""
Workers = Annotated[int, Range(0, 1024)]
"""Processes, threads, and batches kept ready."""
WorkersOrAll = Annotated[int, Range(-1, 1024)]
"""Processes; -1: as many as there are cores for."""
Classes = Annotated[int, Range(1, 255)]
"""Classes of a map: 255 stands for none."""
Axis = Annotated[int, Range(-1, MOST)]
"""Devices along an axis of the mesh; -1: all that remain."""


def check_ordered(instance: object, *names: str) -> None:
    """Raises ValueError for a field, of those named, that is not a pair (low, high)."""
    for name in names:
        value = getattr(instance, name)
        if len(value) != 2 or value[0] > value[1]:
            raise ValueError(f'{name} = {tuple(value)} must be (low, high) with low <= high')
