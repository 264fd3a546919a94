"""From an item's number to its element of a batch: every view, every value; unreadable ones."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping

import numpy as np

from mim_jax.data import picture
from mim_jax.data.config import DataConfig
from mim_jax.data.decode import CorruptImage
from mim_jax.data.specification import batch_spec
from mim_jax.data.view import View
from mim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Elements:
    """Makes elements, dicts of arrays by the keys of `batch_spec`; picklable.

    source: see `mim_jax.data.sources.Source`.
    """

    source: object
    config: DataConfig
    views: Mapping[str, View]

    @functools.cached_property
    def spec(self):
        return batch_spec(self.config, self.views, self.source.fields, batch_size=1)

    @functools.cached_property
    def _mean(self):
        """The colour of what lies beyond an image: 0 when normalised, to half a level."""
        return np.round(255 * np.array(self.config.mean)).astype(np.uint8)

    def read(self, index, rngs):
        """The element of one item; `rngs` has a generator for every view, by its name."""
        source = self.source[index]
        item = picture.Item(
            source,
            channels=self.config.channels,
            fields=self.source.fields,
            place=self.source.describe(index),
        )
        element = {}
        for name, view in self.views.items():
            if view.like is None:
                shown = picture.show(item, view, rngs[name], fill=self._mean)
                element[name] = shown.image
                element |= {f'{name}_{key}': value for key, value in shown.maps.items()}
                if view.boxes:
                    element[f'{name}_boxes'] = shown.box
        for field in self.source.fields:
            if field.kind == 'value':
                element[field.plural] = self._known(field, source[field.name], index)
        return {key: self._checked(key, value, index) for key, value in element.items()}

    def _known(self, field, value, index):
        """The value of a field, which for a class is one of those there are."""
        count = field.num_classes
        if count is not None and not (np.min(value) >= 0 and np.max(value) < count):
            raise UserError(
                f'{self.source.describe(index)} has the {field.name} {value}, which is none of the '
                f'{count} classes 0 to {count - 1}: leave its split out (config.data.split, '
                f'eval_split), or correct the data.'
            )
        return value

    def blank(self):
        """Zeros, for an item that cannot be read."""
        return {key: np.zeros(spec.shape[1:], spec.dtype) for key, spec in self.spec.items()}

    def _checked(self, key, value, index):
        spec = self.spec[key]
        value = np.asarray(value).astype(spec.dtype, copy=False)
        if value.shape != spec.shape[1:]:
            raise ValueError(
                f'{key} of {self.source.describe(index)} has the shape {value.shape}, '
                f'its field or view states {spec.shape[1:]}'
            )
        return value


@dataclasses.dataclass(frozen=True)
class TrainElements(Elements):
    """Number of an item, random generator -> its element."""

    def __call__(self, index, rng):
        count = len(self.source)
        rngs = generators(rng, self.views)
        index = index % count  # a shuffled index counts on through the epochs
        corrupt = []
        # One more than may be corrupt is enough for the main process to stop the run.
        for _ in range(min(count, int(self.config.max_corrupt_share * count) + 1)):
            try:
                return self.read(index, rngs) | {'corrupt': corrupt}
            except CorruptImage as error:
                corrupt.append((int(index), str(error)))
                index = (index + 1) % count
        return self.blank() | {'corrupt': corrupt}


@dataclasses.dataclass(frozen=True)
class EvalElements(Elements):
    """Number of an item -> its element, the same at every call; a number beyond is padding."""

    def __call__(self, index):
        count = len(self.source)
        valid, corrupt = index < count, []
        rngs = generators(np.random.Generator(np.random.Philox(index)), self.views)
        try:
            # Padding repeats the last item: same structure, marked invalid.
            element = self.read(min(index, count - 1), rngs)
        except CorruptImage as error:
            corrupt = [(int(index), str(error))] if valid else []
            element, valid = self.blank(), False
        return element | {
            'index': np.int32(index if index < count else -1),
            'valid': np.bool_(valid),
            'corrupt': corrupt,
        }


def generators(rng, names):
    """A generator for every view's name, so that no view's draws depend on what others there are.

    `images` has `rng` itself; the others' streams are 2^128 draws and more away from it and from
    each other. `rng` must be a fresh one over a bit generator that can jump, as Grain's Philox.
    """
    return {
        name: rng
        if name == 'images'
        else np.random.Generator(rng.bit_generator.jumped(1 + zlib.crc32(name.encode())))
        for name in names
    }


def stack(elements):
    """Elements to a batch of arrays; `corrupt`, a list, is joined."""
    batch = {
        key: np.stack([element[key] for element in elements])
        for key in elements[0]
        if key != 'corrupt'
    }
    batch['corrupt'] = [item for element in elements for item in element['corrupt']]
    return batch
