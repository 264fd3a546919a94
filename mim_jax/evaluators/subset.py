"""A part of a source that stands for the whole of it, and a source several times over."""

import dataclasses
from typing import Any

from mim_jax.data.fields import Field


@dataclasses.dataclass(frozen=True)
class EvenlySpaced:
    """A data source of at most `limit` items (None: all), from all over `source`.

    Folders and prepared data sets are often sorted by class: their first items would be a few
    classes only.
    """

    source: Any
    limit: int | None

    def __len__(self) -> int:
        count = len(self.source)
        return count if self.limit is None else min(self.limit, count)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self._origin(index)]

    def describe(self, index: int) -> str:
        return self.source.describe(self._origin(index))

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.source.fields

    def _origin(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f'{index} is outside a source of {len(self)} items')
        return index * len(self.source) // len(self)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """A data source that has every item of `source` `times` times in a row."""

    source: Any
    times: int

    def __len__(self) -> int:
        return len(self.source) * self.times

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[index // self.times]

    def describe(self, index: int) -> str:
        return self.source.describe(index // self.times)

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.source.fields
