"""Sources to batches: order, views, workers, the position to resume from.

The order is a function of seed and epoch alone. Elements are numbered through all epochs, the
crop of an element is drawn from (seed, its number), and a process takes every
`process_count`-th local batch, so that the local batches of all processes, put one behind the
other, are the batch that one process would have had, for any number of workers.
"""

import dataclasses
import functools
import os
import signal
import threading
import time

import cv2
import grain
import numpy as np
from absl import flags, logging

from mim_jax.data import views
from mim_jax.data.config import DataConfig
from mim_jax.data.decode import CorruptImage
from mim_jax.errors import UserError


def train_batches(
    source, config: DataConfig, *, seed: int, process_index: int = 0, process_count: int = 1
):
    """Endless training batches of this process; see `TrainBatches`.

    Raises:
      UserError: the batch does not divide over the processes, or the source is empty.
    """
    return TrainBatches(
        source, config, seed=seed, process_index=process_index, process_count=process_count
    )


def eval_batches(
    source,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
):
    """One pass over a source in its order, centre views; see `EvalBatches`."""
    return EvalBatches(
        source,
        config,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


class TrainBatches:
    """Iterator of dicts of NumPy arrays, without end.

    A batch has
      images: uint8 [b,H,W,C] with b = batch_size / process_count;
      labels: int32 [b], if the source has labels;
      masks: uint8 [b,H,W], if `config.masks` and the source has them.
    An image that cannot be read is replaced by the next one of the source that can, is logged
    once, and counted in `num_corrupt`.

    `get_state()` is a small dict of ints (fit for JSON) that names the batch to come, the same
    on every process and for any number of workers; `set_state` continues there exactly.

    Raises (on `next`):
      UserError: more than `max_corrupt_share` of the images that this process reads in an epoch
        are corrupt.
    """

    def __init__(self, source, config, *, seed, process_index, process_count):
        if len(source) == 0:
            raise UserError(
                f'config.data.{config.source}: the split {config.split!r} has no images'
            )
        _check_divides(config.batch_size, process_count)
        self._source = source
        self._config = config
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
                f'the data ({self._config.source}, split {self._config.split!r}) has '
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

    def close(self):
        """Ends the workers; `next` would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self):
        config, count = self._config, self._process_count
        _tame_opencv()
        shuffle_seed, crop_seed = _seeds(self._seed)
        dataset = grain.MapDataset.range(len(self._source))
        if config.shuffle:
            dataset = dataset.shuffle(seed=shuffle_seed)
        # Without end in practice; Grain's own endless repeat overflows in batches of one.
        dataset = dataset.repeat(2**48 // len(self._source) + 1)
        dataset = dataset.random_map(_TrainView(self._source, config), seed=crop_seed)
        dataset = dataset.batch(config.batch_size // count, batch_fn=_stack)
        # Batches first, then every count-th of them: the position is a slice's start, and no
        # state of Grain's depends on the number of workers.
        dataset = dataset[self._position * count + self._process_index :: count]
        return _run(dataset, config)


class EvalBatches:
    """One pass over a source, every image once, in batches of one shape; may be iterated again.

    Each iteration gives dicts with
      images: uint8 [b,H,W,C] with b = batch_size / process_count, the centre view;
      labels: int32 [b], if the source has labels;
      masks: uint8 [b,H,W], if `config.masks` and the source has them;
      index: int32 [b], the image's number in the source;
      valid: bool [b], False where an image is padding or could not be read (zeros there).
    Every process gives the same number of batches; global batch i is made of the images
    [i * batch_size, (i + 1) * batch_size), process p having the p-th stretch of b.
    """

    def __init__(self, source, config, *, batch_size, process_index, process_count):
        _check_divides(batch_size, process_count)
        self._source = source
        self._config = config
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
        _tame_opencv()
        padded = self._length * self._local * self._process_count
        dataset = grain.MapDataset.range(padded).map(_EvalView(self._source, self._config))
        dataset = dataset.batch(self._local, batch_fn=_stack)
        dataset = dataset[self._process_index :: self._process_count]
        iterator = _run(dataset, self._config)
        try:
            for batch in iterator:
                self._corrupt.add(batch.pop('corrupt'), epoch=0)
                yield batch
        finally:
            iterator.close()


@dataclasses.dataclass(frozen=True)
class _TrainView:
    """Index in the source, random generator -> one element of a batch."""

    source: object
    config: DataConfig

    def __call__(self, index, rng):
        config, count = self.config, len(self.source)
        crop = config.crop
        if crop.mode == 'random':
            choose = functools.partial(views.random_box, rng, scale=crop.scale, ratio=crop.ratio)
        elif crop.mode == 'resize':
            choose = _whole
        else:
            choose = None
        index = index % count  # a shuffled index counts on through the epochs
        corrupt = []
        # One more than may be corrupt is enough for the main process to stop the run.
        for _ in range(min(count, int(config.max_corrupt_share * count) + 1)):
            try:
                return _element(self.source, index, choose, config) | {'corrupt': corrupt}
            except CorruptImage as error:
                corrupt.append((int(index), str(error)))
                index = (index + 1) % count
        return {'images': _blank(config), 'corrupt': corrupt}


@dataclasses.dataclass(frozen=True)
class _EvalView:
    """Index -> one element; an index beyond the source is padding."""

    source: object
    config: DataConfig

    def __call__(self, index):
        config = self.config
        share = config.eval_crop
        if config.crop.mode == 'none' and share is None:
            choose = None
        else:
            share = share or (0.875 if config.crop.mode == 'random' else 1.0)
            choose = functools.partial(views.centre_box, size=tuple(config.image_size), share=share)
        # Padding repeats the last image's label and mask: same structure, marked invalid.
        valid, corrupt = index < len(self.source), []
        try:
            element = _element(self.source, min(index, len(self.source) - 1), choose, config)
        except CorruptImage as error:
            corrupt = [(int(index), str(error))] if valid else []
            element, valid = {'images': _blank(config)}, False
            if self.source.num_classes is not None:
                element['labels'] = np.int32(0)
        return element | {
            'index': np.int32(index if index < len(self.source) else -1),
            'valid': np.bool_(valid),
            'corrupt': corrupt,
        }


def _element(source, index, choose, config):
    item = source[index]
    image, mask = views.view(
        item,
        choose,
        size=tuple(config.image_size),
        channels=config.channels,
        interpolation=config.crop.interpolation,
    )
    element = {'images': image}
    if item.get('label') is not None:
        element['labels'] = np.int32(item['label'])
    if config.masks and mask is not None:
        element['masks'] = mask
    return element


def _whole(*, height, width):
    return 0, 0, height, width


def _blank(config):
    return np.zeros((*config.image_size, config.channels), np.uint8)


def _stack(elements):
    """List of elements to a batch. An element without an image has no label or mask either: 0."""
    keys = dict.fromkeys(key for element in elements for key in element if key != 'corrupt')
    batch = {}
    for key in keys:
        like = next(element[key] for element in elements if key in element)
        batch[key] = np.stack([element.get(key, np.zeros_like(like)) for element in elements])
    batch['corrupt'] = [item for element in elements for item in element['corrupt']]
    return batch


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
    return (int(s) for s in np.random.SeedSequence([seed, 0]).generate_state(2))


def _run(dataset, config):
    """Starts the threads or processes that make the batches of a Grain MapDataset."""
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
