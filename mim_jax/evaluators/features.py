"""Features of a set of images, spread over the processes, as evaluators get them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from mim_jax.errors import UserError

Pool = Literal['mean', 'class', 'both']

# A pooling and the parts that it is concatenated from; `pool_tokens` computes a part.
POOLINGS = {'mean': ('mean',), 'class': ('class',), 'both': ('class', 'mean')}

FeatureFn = Callable[[np.ndarray], Mapping[str, jax.Array | np.ndarray]]
Batches = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Features:
    """This process's share of a set of images, without padding and unreadable images.

    rows: float32 [n,D], a feature per image.
    numbers: int32 [n], the images' numbers in the set, rising; no two processes share one.
    labels: int32 [n], or None where the images have none.
    """

    rows: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray | None = None

    def select(self, ids: np.ndarray) -> 'Features':
        """The rows that `ids` (int, or bool [n]) name."""
        labels = None if self.labels is None else self.labels[ids]
        return Features(self.rows[ids], self.numbers[ids], labels)

    def gathered(self) -> 'Features':
        """The images of all processes, on every process, in the order of their numbers: the same
        for any number of processes. A collective.
        """
        numbers = gather(self.numbers)
        order = np.argsort(numbers)
        labels = None if self.labels is None else gather(self.labels)[order]
        return Features(gather(self.rows)[order], numbers[order], labels)


def pool_tokens(encoded: Any, *, pool: str) -> jax.Array:
    """One float32 [B,D] feature per image from an `Encoded`: the mean of the patch tokens ('mean')
    or the class token ('class').

    Raises UserError where the encoder has no class token.
    """
    if pool == 'mean':
        return encoded.tokens.astype(np.float32).mean(axis=1)
    if encoded.class_token is None:
        raise UserError(
            "An evaluator's pool needs the class token, but the encoder has none: "
            "set pool = 'mean', or model.class_token = True."
        )
    return encoded.class_token.astype(np.float32)


def collect(feature_fn: FeatureFn, batches: Batches) -> dict[str, Features]:
    """This process's features by the parts that `feature_fn` gives, in one pass over its batches.

    feature_fn: images uint8 [b,H,W,C] (this process's rows) -> {part: float32 [b,D]}, an array of
      them or the global array of all processes' rows of which exactly those are addressable here.
    batches: dicts with `images`, `index` int32 [b] and `valid` bool [b] (False: left out), and
      `labels` int32 [b] where there are some; equally many batches on every process, as feature_fn
      is a collective.
    """
    features, numbers, labels, pending = [], [], [], None
    for batch in batches:
        keep = np.asarray(batch['valid'], bool)
        # One batch stays in flight, so that the host prepares the next while the device works.
        if pending is not None:
            features.append(_fetched(*pending))
        pending = feature_fn(batch['images']), keep
        numbers.append(np.asarray(batch['index'], np.int32)[keep])
        if 'labels' in batch:
            labels.append(np.asarray(batch['labels'], np.int32)[keep])
    if pending is None:
        raise UserError('There are no images to evaluate: is the split empty?')
    features.append(_fetched(*pending))
    numbers = np.concatenate(numbers)
    labels = np.concatenate(labels) if labels else None
    return {
        part: Features(np.concatenate([batch[part] for batch in features]), numbers, labels)
        for part in features[0]
    }


def pooled(parts: Mapping[str, Features], *, pool: Pool) -> Features:
    """The features of one of POOLINGS from those of its parts."""
    chosen = [parts[part] for part in POOLINGS[pool]]
    if len(chosen) == 1:
        return chosen[0]
    rows = np.concatenate([part.rows for part in chosen], axis=1)
    return dataclasses.replace(chosen[0], rows=rows)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n,D] divided by their norms; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def check_fields(evaluator: Any) -> None:
    """Raises ValueError for a wrong value among the fields that evaluators share."""
    if evaluator.pool not in POOLINGS:
        raise ValueError(f'pool must be one of {", ".join(POOLINGS)}, not {evaluator.pool!r}')
    for name in ('max_train', 'max_test'):
        limit = getattr(evaluator, name, None)
        if limit is not None and limit < 1:
            raise ValueError(f'{name} must be at least 1 or none, not {limit}')


def check_labels(features: Features, *, num_classes: int, evaluator: str, split: str) -> None:
    """Raises UserError, on every process, unless there are images and each has a label in
    0..num_classes-1. A collective.
    """
    if features.labels is None:
        raise UserError(f'The {evaluator} evaluator needs labels, the {split} images have none.')
    labels = gather(features.labels)
    if not len(labels):
        raise UserError(f'The {evaluator} evaluator got no {split} images: is the split empty?')
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f'The {evaluator} evaluator got {split} labels from {labels.min()} to {labels.max()}, '
            f'but the data source says {num_classes} classes.'
        )


def _fetched(arrays: Mapping[str, jax.Array | np.ndarray], keep: np.ndarray) -> dict:
    return {name: local_rows(array)[keep].astype(np.float32) for name, array in arrays.items()}


def local_rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """The rows of an array that this process holds, in order."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def gather(rows: np.ndarray) -> np.ndarray:
    """Concatenates every process's rows [n_p,…], on every process; n_p may differ."""
    if jax.process_count() == 1:
        return rows
    from jax.experimental.multihost_utils import process_allgather

    shapes = process_allgather(np.array([len(rows), *rows.shape[1:]], np.int32))
    padded = np.zeros(shapes.max(axis=0), rows.dtype)
    padded[tuple(map(slice, rows.shape))] = rows
    # As bytes: on its way through the devices a float64 would become a float32.
    parts = np.asarray(process_allgather(padded.view(np.uint8))).view(rows.dtype)
    return np.concatenate([part[:n] for part, n in zip(parts, shapes[:, 0], strict=True)])
