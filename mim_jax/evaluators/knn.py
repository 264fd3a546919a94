"""Weighted nearest-neighbour classification of frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018),
section 3.4, with k and temperature as in DINO (Caron et al., ICCV 2021): a test image's k nearest
training images by cosine similarity s vote for their class with weight exp(s / temperature).

Every process ranks its own share of the training images for all test images; only test features
and k candidates per test image and process are exchanged. On a process the test images are split
over its devices, and the training features pass through them in chunks with a running top k, so
that neither the similarities nor the training features have to fit at once.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import (
    Features,
    Pool,
    check_finite,
    check_labels,
    gather,
    unit,
)
from mim_jax.ranges import Count, Positive

# Chunks of the similarity matrix: 512 test rows per device times 8192 training rows (16 MiB).
TEST_ROWS = 512
TRAIN_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class KNN:
    """Config section of the k-nearest-neighbour evaluator.

    k: neighbours that vote; with several, the first is the headline.
    temperature: of the votes' weights.
    pool: feature of an image, see `evaluators.POOLINGS`.
    max_train, max_test: use only so many images of each split, evenly spaced over it (None: all).

    Without test images the training images are the test: leave-one-out, each against the others.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'optional'

    # A tuple, so that a config file can assign several; the command line may give one number.
    k: Count | tuple[Count, ...] = (20,)
    temperature: Positive = 0.07
    pool: Pool = 'mean'
    max_train: Count | None = None
    max_test: Count | None = None

    def __post_init__(self):
        if not self.all_k or len({*self.all_k}) < len(self.all_k):
            raise ValueError(f'k must be one or more different numbers, not {self.k}')

    @property
    def all_k(self) -> tuple[int, ...]:
        return (self.k,) if isinstance(self.k, int) else tuple(self.k)

    def run(
        self, train: Features, test: Features | None, *, num_classes: int
    ) -> Iterator[tuple[str, float]]:
        """Yields ('top1', share correct in 0..1), ('top5', …) where there are more than 5 classes,
        and for every further k ('top1_k10', …), ….

        See `evaluators.Evaluator` for the arguments. Raises UserError for an empty split, labels
        outside 0..num_classes-1, or features that are not finite.
        """
        check = functools.partial(check_labels, num_classes=num_classes, evaluator='kNN')
        for features, split in (train, 'training'), (test, 'test'):
            if features is not None:
                check(features, split=split)
                check_finite(features, evaluator='kNN', split=split)
        queries = (train if test is None else test).gathered()
        similarities, labels = nearest(
            unit(train.rows),
            train.labels,
            unit(queries.rows),
            k=max(self.all_k),
            train_ids=train.numbers,
            excluded=queries.numbers if test is None else None,
        )
        for k in self.all_k:
            ranks = label_ranks(
                similarities[:, :k],
                labels[:, :k],
                queries.labels,
                temperature=self.temperature,
                num_classes=num_classes,
            )
            suffix = '' if k == self.all_k[0] else f'_k{k}'
            yield f'top1{suffix}', float(np.mean(ranks < 1))
            if num_classes > 5:
                yield f'top5{suffix}', float(np.mean(ranks < 5))


def nearest(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    k: int,
    train_ids: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
    train_rows: int = TRAIN_ROWS,
    test_rows: int = TEST_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training rows of every test row, most similar first.

    train, train_labels: this process's unit features [M,D] and labels [M]; test: unit features
    [T,D] of all processes. excluded: int32 [T], the one of `train_ids` (int32 [M], none negative)
    that is no neighbour of the row. Returns cosine similarities float32 [T,k] (-inf where there are
    fewer than k neighbours) and labels int32 [T,k], over the training rows of all processes.
    """
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ('rows',), axis_types=(AxisType.Auto,))
    by_rows = NamedSharding(mesh, PartitionSpec(None, 'rows'))
    count, width = test.shape
    test_rows = min(test_rows, -(-count // len(devices))) * len(devices)
    chunks = -(-count // test_rows)
    if excluded is None:
        train_ids, excluded = np.zeros(len(train), np.int32), np.full(count, -1, np.int32)
    padding = chunks * test_rows - count
    queries = jax.device_put(
        (
            np.pad(test, ((0, padding), (0, 0))).reshape(chunks, test_rows, width),
            np.pad(excluded, (0, padding)).reshape(chunks, test_rows),
        ),
        by_rows,
    )
    best = jax.device_put(
        (
            np.full((chunks, test_rows, k), -np.inf, np.float32),
            np.zeros((chunks, test_rows, k), np.int32),
        ),
        by_rows,
    )
    train_rows = min(train_rows, max(len(train), 1))
    everywhere = NamedSharding(mesh, PartitionSpec())
    for start in range(0, len(train), train_rows):
        part = train[start : start + train_rows]
        missing = train_rows - len(part)
        chunk = (
            np.pad(part, ((0, missing), (0, 0))),
            np.pad(train_labels[start : start + train_rows], (0, missing)),
            np.pad(train_ids[start : start + train_rows], (0, missing)),
            np.arange(train_rows) < len(part),
        )
        with jax.set_mesh(mesh):  # the trainer's mesh may be set
            best = _merge_chunk(best, queries, jax.device_put(chunk, everywhere), mesh=mesh)
    similarities, labels = (np.asarray(x).reshape(-1, k)[:count] for x in best)
    if jax.process_count() == 1:
        return similarities, labels
    similarities = gather(similarities).reshape(-1, count, k)
    labels = gather(labels).reshape(-1, count, k)
    similarities, labels = (np.concatenate(x, axis=1) for x in (similarities, labels))
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(labels, order, 1)


@functools.partial(jax.jit, static_argnames='mesh', donate_argnums=0)
def _merge_chunk(best, queries, chunk, *, mesh):
    """Running top k [chunks,rows,k] of queries ([chunks,rows,D] and the id [chunks,rows] that each
    excludes), after one more training chunk.
    """

    def merge(carry, chunk):
        similarities, labels, query, excluded = carry
        train, train_labels, train_ids, valid = chunk
        new = jnp.matmul(query, train.T, precision='highest')
        new = jnp.where(valid & (train_ids != excluded[:, None]), new, -jnp.inf)
        # Top k of the chunk first: it needs no concatenated copy of the similarities.
        k = similarities.shape[-1]
        new, ids = jax.lax.top_k(new, min(k, new.shape[-1]))
        both = jnp.concatenate([similarities, new], axis=-1)
        both_labels = jnp.concatenate([labels, train_labels[ids]], axis=-1)
        similarities, ids = jax.lax.top_k(both, k)
        return similarities, jnp.take_along_axis(both_labels, ids, axis=-1)

    def local(best, queries, chunk):
        return jax.lax.map(lambda carry: merge(carry, chunk), (*best, *queries))

    # Left to itself, the partitioner gathers the rows for top_k.
    rows = PartitionSpec(None, 'rows')
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, PartitionSpec()), out_specs=(rows, rows)
    )
    return run(best, queries, chunk)


def label_ranks(
    similarities: np.ndarray,
    labels: np.ndarray,
    true_labels: np.ndarray,
    *,
    temperature: float,
    num_classes: int,
    rows: int = TEST_ROWS,
) -> np.ndarray:
    """How many classes have more votes than the true one, int32 [T]: 0 is a correct answer.

    Equal votes go to the lower class; a true class without votes has rank num_classes.
    """
    count = len(similarities)
    rows = min(rows, count)
    ranks = []
    for start in range(0, count, rows):
        parts = [x[start : start + rows] for x in (similarities, labels, true_labels)]
        parts = [np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in parts]
        ranks.append(_ranks(*parts, temperature, num_classes=num_classes))
    return np.concatenate([np.asarray(x) for x in ranks])[:count]


@functools.partial(jax.jit, static_argnames='num_classes')
def _ranks(similarities, labels, true_labels, temperature, *, num_classes):
    # Relative to the nearest neighbour, so that a low temperature cannot overflow.
    weights = jnp.exp((similarities - similarities[:, :1]) / temperature)
    at = jnp.arange(len(labels))[:, None]
    votes = jnp.zeros((len(labels), num_classes)).at[at, labels].add(weights)
    true = jnp.take_along_axis(votes, true_labels[:, None], axis=1)
    lower = jnp.arange(num_classes) < true_labels[:, None]
    ahead = ((votes > true) | ((votes == true) & lower)).sum(axis=1)
    return jnp.where(true[:, 0] > 0, ahead, num_classes)
