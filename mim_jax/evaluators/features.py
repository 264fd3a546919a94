"""Features of a set of images, spread over the processes, as evaluators get them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError

Pool = Literal['mean', 'class', 'both']

POOLINGS = get_args(Pool)
GATHERED_BYTES = 2**26  # of all processes' rows that are on a device at once


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """What features are concatenated from.

    pooling: the 'mean' of an image's patch tokens, its 'class' token, or all of both ('tokens').
    back: after the block that lies so many before the last, through the encoder's final norm; 0 is
      the encoder's output.
    """

    pooling: str
    back: int = 0


Recipe = tuple[Part, ...]
FeatureFn = Callable[[Mapping[str, Any]], Mapping[Part, jax.Array | np.ndarray]]
Batches = Iterable[Mapping[str, Any]]


def recipe(pool: str, *, blocks: int = 1) -> Recipe:
    """The parts of a pooling of the last `blocks` blocks, in the order of their concatenation.

    'class' and 'mean': of each of these blocks. 'both': the class token of each, and the mean of
    the last alone, as DINOv2 has it (`create_linear_input` of its eval/linear.py). 'tokens': those
    of the last.
    """
    if pool == 'tokens':
        return (Part('tokens'),)
    first = 'mean' if pool == 'mean' else 'class'
    parts = tuple(Part(first, back) for back in reversed(range(blocks)))
    return parts + ((Part('mean'),) if pool == 'both' else ())


def recipes(evaluator: Any) -> tuple[Recipe, ...]:
    """What an evaluator is given: by its attribute `recipes`, or its `pool` alone."""
    return getattr(evaluator, 'recipes', None) or (recipe(evaluator.pool),)


@dataclasses.dataclass(frozen=True)
class Features:
    """This process's share of a set of images, without padding and unreadable images.

    rows: float32 [n,D], a feature per image; with pool 'tokens' [n,S,D] in the encoder's dtype.
    numbers: int32 [n], the images' numbers in the set, rising; no two processes share one. Of an
      evaluator with `views`, view v of image i has the number i * views + v.
    labels: int32 [n], or None where the images have none.
    further: the rows of an evaluator's second recipe, third, ….
    """

    rows: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray | None = None
    further: tuple[np.ndarray, ...] = ()

    def select(self, ids: np.ndarray) -> 'Features':
        """The rows that `ids` (int, or bool [n]) name."""
        labels = None if self.labels is None else self.labels[ids]
        further = tuple(rows[ids] for rows in self.further)
        return Features(self.rows[ids], self.numbers[ids], labels, further)

    def gathered(self) -> 'Features':
        """The images of all processes, on every process, in the order of their numbers: the same
        for any number of processes. A collective.
        """
        if jax.process_count() == 1 and (np.diff(self.numbers) > 0).all():
            return self  # what is large is not copied
        numbers = gather(self.numbers)
        order = np.argsort(numbers)
        labels = None if self.labels is None else gather(self.labels)[order]
        further = tuple(gather(rows)[order] for rows in self.further)
        return Features(gather(self.rows)[order], numbers[order], labels, further)


def pool_tokens(encoded: Any, *, pool: str) -> jax.Array:
    """One float32 [B,D] feature per image from an `Encoded`: the mean of the patch tokens ('mean')
    or the class token ('class'); or all of these [B,S,D] as they are ('tokens').

    Raises UserError where the encoder has no class token.
    """
    if pool == 'tokens':
        return encoded.class_and_patches
    if pool == 'mean':
        return encoded.tokens.astype(np.float32).mean(axis=1)
    if encoded.class_token is None:
        raise UserError(
            "An evaluator's pool needs the class token, but the encoder has none: "
            "set pool = 'mean', or model.class_token = True."
        )
    return encoded.class_token.astype(np.float32)


def collect(feature_fn: FeatureFn, batches: Batches) -> dict[Part, Features]:
    """This process's features by the parts that `feature_fn` gives, in one pass over its batches.

    feature_fn: a batch (this process's rows) -> {part: [b,D], or [b,S,D] tokens}, an array of these
      rows or the global array of all processes' rows of which exactly those are addressable here.
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
        pending = feature_fn(batch), keep
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


def pooled(parts: Mapping[Part, Features], wanted: tuple[Recipe, ...]) -> Features:
    """The features of recipes from those of their parts."""
    rows = []
    for parts_of_one in wanted:
        chosen = [parts[part].rows for part in parts_of_one]
        rows.append(chosen[0] if len(chosen) == 1 else np.concatenate(chosen, axis=1))
    return dataclasses.replace(parts[wanted[0][0]], rows=rows[0], further=tuple(rows[1:]))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n,D] divided by their norms; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def ranks_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the right one, int32 [B], by logits [B,C] and labels [B].

    Of equal scores that of the lower class comes first; where a score is not finite, none is right.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    lower = jnp.arange(logits.shape[1]) < labels[:, None]
    ahead = ((logits > own) | ((logits == own) & lower)).sum(axis=1)
    return jnp.where(jnp.isfinite(logits).all(axis=1), ahead, logits.shape[1])


def check_labels(features: Features, *, num_classes: int, evaluator: str, split: str) -> None:
    """Raises UserError, on every process, unless there are images and each has a label in
    0..num_classes-1. A collective.
    """
    if features.labels is None:
        raise UserError(f'The {evaluator} evaluator needs labels, the {split} images have none.')
    labels = gather(features.labels)
    if not len(labels):
        raise UserError(
            f'The {evaluator} evaluator got no {split} image that can be read (what cannot is '
            'named above, if there is any): see the data section.'
        )
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(
            f'The {evaluator} evaluator got {split} labels from {labels.min()} to {labels.max()}, '
            f'but the data source says {num_classes} classes.'
        )


def check_finite(features: Features, *, evaluator: str, split: str) -> None:
    """Raises UserError, on every process, where a feature is not finite. A collective."""
    bad = 0
    for rows in (features.rows, *features.further):
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            bad += int((~np.isfinite(part).reshape(len(part), -1).all(axis=1)).sum())
    bad = int(gather(np.array([bad])).sum())
    if bad:
        raise UserError(
            f'The {evaluator} evaluator got {bad} features of {split} images that are not finite: '
            'the encoder has diverged; lower config.optimizer.learning_rate, or evaluate an '
            'earlier checkpoint.'
        )


def _fetched(arrays: Mapping[Part, jax.Array | np.ndarray], keep: np.ndarray) -> dict:
    fetched = {part: local_rows(array)[keep] for part, array in arrays.items()}
    # Tokens are many: they keep the dtype in which they were computed.
    return {
        part: rows if part.pooling == 'tokens' else rows.astype(np.float32)
        for part, rows in fetched.items()
    }


def local_rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """The rows of an array that this process holds, in order."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def gather(rows: np.ndarray) -> np.ndarray:
    """Concatenates every process's rows [n_p,…], on every process; n_p may differ.

    They pass through the devices in chunks, so that no device has to hold all of them.
    """
    if jax.process_count() == 1:
        return rows
    from jax.experimental.multihost_utils import process_allgather

    shapes = process_allgather(np.array([len(rows), *rows.shape[1:]], np.int32))
    longest, *shape = shapes.max(axis=0)
    if not longest:
        return rows
    padded = np.zeros((longest, *shape), rows.dtype)
    padded[tuple(map(slice, rows.shape))] = rows
    # As bytes: on its way through the devices a float64 would become a float32.
    padded = padded.reshape(longest, -1).view(np.uint8)
    step = max(1, GATHERED_BYTES // max(1, padded.shape[1] * len(shapes)))
    chunks = [
        np.asarray(process_allgather(padded[start : start + step]))
        for start in range(0, longest, step)
    ]
    counts = shapes[:, 0]
    parts = [np.concatenate([chunk[p] for chunk in chunks])[:n] for p, n in enumerate(counts) if n]
    return np.concatenate(parts).view(rows.dtype).reshape(-1, *shape)
