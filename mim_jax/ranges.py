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
            texts.append(f'{"above" if self.low_open else "at least"} {self.low:g}')
        if self.high is not None:
            texts.append(f'{"below" if self.high_open else "at most"} {self.high:g}')
        return ' and '.join(texts)


Count = Annotated[int, Range(1, MOST)]
Number = Annotated[int, Range(0, MOST)]
Examples = Annotated[int, Range(0, 2**53)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, 1e12, low_open=True)]
NotNegative = Annotated[float, Range(0, 1e12)]
Share = Annotated[float, Range(0, 1)]
# A decay, a rate of dropping: at 1 nothing would ever move, or be left.
Fraction = Annotated[float, Range(0, 1, high_open=True)]
Percent = Annotated[float, Range(0, 100)]
"""Durations in percent of the run."""
