"""Sources to batches: order, workers, the position to resume from.

The order is a function of seed and epoch alone. Elements are numbered through all epochs, the
crops of an element are drawn from (seed, its number, the view's name), and a process takes every
`process_count`-th local batch, so that the local batches of all processes, put one behind the
other, are the batch that one process would have had, for any number of workers.
"""

import functools
import os
import signal
import threading
import time

import cv2
import grain
import numpy as np
from absl import flags, logging

from mim_jax.data.config import DataConfig
from mim_jax.data.elements import EvalElements, TrainElements, stack
from mim_jax.data.order import order
from mim_jax.data.specification import Views, batch_spec, eval_views
from mim_jax.errors import UserError


def train_batches(
    source,
    config: DataConfig,
    *,
    seed: int,
    views: Views | None = None,
    process_index: int = 0,
    process_count: int = 1,
):
    """Endless training batches of this process; see `TrainBatches`.

    Raises:
      UserError: the batch does not divide over the processes, the source is empty, or the views
        cannot be made of it.
    """
    return TrainBatches(
        source,
        config,
        seed=seed,
        views=views or {'images': config.view()},
        process_index=process_index,
        process_count=process_count,
    )


def eval_batches(
    source,
    config: DataConfig,
    *,
    batch_size: int,
    views: Views | None = None,
    process_index: int = 0,
    process_count: int = 1,
):
    """One pass over a source in its order; see `EvalBatches`."""
    return EvalBatches(
        source,
        config,
        batch_size=batch_size,
        views=views or eval_views(config, {'images': config.view()}),
        process_index=process_index,
        process_count=process_count,
    )


class TrainBatches:
    """Iterator of dicts of NumPy arrays, without end.

    A batch has the arrays of `batch_spec` for b = batch_size / process_count: `images` uint8
    [b,H,W,C] and what else `views` (None: `images` alone, by the config) and the source's values
    bring, such as `labels` int32 [b]. An item that cannot be read is replaced by the next one of
    the source that can, is logged once, and counted in `num_corrupt`.

    `get_state()` is a small dict of ints (fit for JSON) that names the batch to come, the same
    on every process and for any number of workers; `set_state` continues there exactly.

    Raises (on `next`):
      UserError: more than `max_corrupt_share` of the images that this process reads in an epoch
        are corrupt.
    """

    def __init__(self, source, config, *, seed, views, process_index, process_count):
        if len(source) == 0:
            raise UserError(f'config.data.split: the split {config.split!r} has no images')
        _check_divides(config.batch_size, process_count)
        batch_spec(config, views, source.fields)
        self._source = source
        self._config = config
        self._views = views
        self._seed = seed
        self._process_index = process_index
        self._process_count = process_count
        self._position = 0  # global batches handed out
        self._iterator = None
        self._corrupt = _CorruptImages(source, config, share=1 / process_count)

    @property
    def num_corrupt(self) -> int:
        """How many different images could not be read since this iterator was made."""
        return len(self._corrupt.seen)

    def __iter__(self):
        return self

    def __next__(self):
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        batch_size = self._config.batch_size
        epoch = self._position * batch_size // len(self._source)
        self._corrupt.add(batch.pop('corrupt'), epoch=epoch)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {
            'next_example': self._position * self._config.batch_size,
            'num_images': len(self._source),
            'seed': self._seed,
        }

    def set_state(self, state: dict[str, int]):
        if state['num_images'] != len(self._source):
            raise UserError(
                f'the split {self._config.split!r} of config.data.source has '
                f'{len(self._source)} images, the run to resume had {state["num_images"]}: '
                f'restore the data, or start a new work directory'
            )
        if state['seed'] != self._seed:
            raise UserError(
                f'seed is {self._seed}, the run to resume had {state["seed"]}: restore it, or '
                f'start a new work directory'
            )
        self.close()
        self._position = state['next_example'] // self._config.batch_size

    def items(self, position: int) -> list[int]:
        """The numbers in the source of the images of the global batch after `position` others, in
        its order. One that cannot be read stands for the next one that can.
        """
        numbers, size = self._order(), self._config.batch_size
        first = position * size
        return [numbers[i] % len(self._source) for i in range(first, first + size)]

    def close(self):
        """Ends the workers; `next` would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _order(self):
        return order(len(self._source), self._config, seed=_seeds(self._seed)[0])

    def _start(self):
        config, count = self._config, self._process_count
        elements = TrainElements(self._source, config, self._views)
        dataset = self._order().random_map(elements, seed=_seeds(self._seed)[1])
        dataset = dataset.batch(config.batch_size // count, batch_fn=stack)
        # Batches first, then every count-th of them: the position is a slice's start, and no
        # state of Grain's depends on the number of workers.
        dataset = dataset[self._position * count + self._process_index :: count]
        return run(dataset, config)


class EvalBatches:
    """One pass over a source, every image once, in batches of one shape; may be iterated again.

    Each iteration gives dicts with the arrays of `batch_spec` for b = batch_size / process_count,
    `images` uint8 [b,H,W,C] being the centre of the picture unless `views` say otherwise, and
      index: int32 [b], the image's number in the source;
      valid: bool [b], False where an image is padding or could not be read (zeros there).
    Every process gives the same number of batches; global batch i is made of the images
    [i * batch_size, (i + 1) * batch_size), process p having the p-th stretch of b.
    """

    def __init__(self, source, config, *, batch_size, views, process_index, process_count):
        _check_divides(batch_size, process_count)
        batch_spec(config, views, source.fields)
        self._source = source
        self._config = config
        self._views = views
        self._local = batch_size // process_count
        self._length = -(-len(source) // batch_size)
        self._process_index = process_index
        self._process_count = process_count
        self._corrupt = _CorruptImages(source, config, share=1 / process_count)

    @property
    def num_corrupt(self) -> int:
        return len(self._corrupt.seen)

    def __len__(self) -> int:
        return self._length

    def __iter__(self):
        padded = self._length * self._local * self._process_count
        elements = EvalElements(self._source, self._config, self._views)
        dataset = grain.MapDataset.range(padded).map(elements)
        dataset = dataset.batch(self._local, batch_fn=stack)
        dataset = dataset[self._process_index :: self._process_count]
        iterator = run(dataset, self._config)
        try:
            for batch in iterator:
                self._corrupt.add(batch.pop('corrupt'), epoch=0)
                yield batch
        finally:
            iterator.close()


class _CorruptImages:
    """Logs each corrupt image once, counts them, and stops the run when they are too many."""

    def __init__(self, source, config, *, share):
        self.seen = set()
        self._source = source
        self._config = config
        # A process reads its share of the images in an epoch, other ones in the next: counted
        # by epoch, the share of corrupt ones does not depend on the number of processes.
        self._limit = config.max_corrupt_share * len(source) * share
        self._epoch = None
        self._in_epoch = set()

    def add(self, corrupt, *, epoch):
        if epoch != self._epoch:
            self._epoch, self._in_epoch = epoch, set()
        for index, reason in corrupt:
            self._in_epoch.add(index)
            if index not in self.seen:
                self.seen.add(index)
                logging.warning('corrupt image: %s (%s)', self._source.describe(index), reason)
        if len(self._in_epoch) > self._limit:
            raise UserError(
                f'{len(self._in_epoch)} of {len(self._source)} images cannot be read, more than '
                f'config.data.max_corrupt_share = {self._config.max_corrupt_share} allows (the '
                f'first: {self._source.describe(min(self._in_epoch))}): repair or remove them, or '
                f'raise that share'
            )


def _check_divides(batch_size, process_count):
    if batch_size % process_count:
        raise UserError(
            f'a batch of {batch_size} images does not divide over {process_count} processes: '
            f'make config.data.batch_size a multiple of {process_count}'
        )


def _seeds(seed):
    """Independent seeds for order and crops. Grain's shuffle adds the epoch to its seed, so that
    without mixing, seed 1 would repeat seed 0 from the second epoch on."""
    return tuple(int(s) for s in np.random.SeedSequence([seed, 0]).generate_state(2))


def run(dataset, config):
    """Starts the threads or processes that make the elements of a Grain MapDataset, in its order.

    Of `config`, a DataConfig, it reads workers, threads and prefetch. To be closed.
    """
    _tame_opencv()
    threads = min(config.threads, config.prefetch)
    reading = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=config.prefetch if threads else 0
    )
    dataset = dataset.to_iter_dataset(reading)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, outside of absl's main too
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(1, config.prefetch)
        )
        dataset = dataset.mp_prefetch(
            options, worker_init_fn=functools.partial(_init_worker, os.getpid())
        )
    iterator = iter(dataset)
    if config.workers:
        return _OwnMemory(iterator)
    return iterator


class _OwnMemory:
    """Copies batches out of the shared memory in which Grain's workers hand them over, so that an
    array kept for long (or aliased by a CPU device) keeps no shared segment alive."""

    def __init__(self, iterator):
        self._iterator = iterator
        self.close = iterator.close

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._iterator)
        return {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def _tame_opencv():
    """Its threads would compete with ours, and what it says of a corrupt image we say better."""
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _init_worker(parent, worker_index, worker_count):
    """In each worker process: one thread, no signals of its own, and no life without the parent."""
    del worker_index, worker_count
    _tame_opencv()
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
