"""In which order a run sees the items of a source: a function of seed and epoch alone."""

import dataclasses
import functools
import math

import grain
import numpy as np

# Constants, so that an order depends on nothing but what a config says of it.
LANES = 64
WINDOW = 16


def order(num_items: int, config, *, seed: int) -> grain.MapDataset:
    """Numbers of items, which count on through the epochs (modulo `num_items` they are the items),
    in the order of all epochs, without end in practice.

    config: a DataConfig, of which it reads shuffle, shuffle_block and batch_size. seed: below 2^32.
    """
    if config.shuffle and config.shuffle_block is not None:
        blocks = BlockOrder(num_items, config.shuffle_block, config.batch_size, seed)
        return grain.MapDataset.range(2**48).map(blocks)
    dataset = grain.MapDataset.range(num_items)
    if config.shuffle:
        dataset = dataset.shuffle(seed=seed)
    # Grain's own endless repeat overflows in batches of one.
    return dataset.repeat(2**48 // num_items + 1)


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """Number of an example -> number of its item, both counting on through the epochs.

    For storage that is quick only where neighbours are read one after the other. In every epoch

    - the items, from one that is drawn on and round, are cut into blocks of `block` neighbours,
      whose order is drawn (a shorter last one stays last);
    - this sequence is cut into up to LANES stretches, one for each lane of the batches: lane l is
      the l-th stretch of every batch. So processes, which take stretches of batches, read blocks of
      their own if their number divides that of the lanes (else neighbours share some), and the
      order does not depend on how many they are;
    - a lane draws which of the next WINDOW blocks gives its next item. Each is read from its first
      to its last, and the storage sees a few streams that it can read ahead of.
    """

    num_items: int
    block: int
    batch_size: int
    seed: int

    def __call__(self, example: int) -> int:
        epoch = example // self.num_items
        lane = example % self.batch_size // self._width
        rank = self._seen(example, lane) - self._seen(epoch * self.num_items, lane)
        number, place = divmod(rank, self.block * WINDOW)
        return epoch * self.num_items + int(_window(self, epoch, lane, number)[place])

    @property
    def lanes(self) -> int:
        return math.gcd(LANES, self.batch_size)

    @property
    def _width(self) -> int:
        """Examples of a lane in a batch."""
        return self.batch_size // self.lanes

    def _seen(self, example: int, lane: int) -> int:
        """How many of the examples before this one are the lane's."""
        batches, slots = divmod(example, self.batch_size)
        return batches * self._width + min(max(slots - self._width * lane, 0), self._width)


@functools.lru_cache(maxsize=2)
def _epoch(order: BlockOrder, epoch: int) -> tuple[int, np.ndarray, np.ndarray]:
    """The item with which the first block begins, the blocks in their order, and where the lanes'
    stretches of all their items begin and end [lanes + 1].
    """
    rng = np.random.default_rng([order.seed, epoch])
    whole, rest = divmod(order.num_items, order.block)
    first, blocks = int(rng.integers(order.num_items)), rng.permutation(whole)
    if rest:
        blocks = np.append(blocks, whole)
    begin, end = epoch * order.num_items, (epoch + 1) * order.num_items
    lengths = [order._seen(end, lane) - order._seen(begin, lane) for lane in range(order.lanes)]
    return first, blocks, np.append(0, np.cumsum(lengths))


@functools.lru_cache(maxsize=2 * LANES)
def _window(order: BlockOrder, epoch: int, lane: int, number: int) -> np.ndarray:
    """The items of a lane's window, in their order."""
    first, blocks, bounds = _epoch(order, epoch)
    begin = bounds[lane] + number * order.block * WINDOW
    places = np.arange(begin, min(begin + order.block * WINDOW, bounds[lane + 1]))
    block, within = np.divmod(places, order.block)
    items = (first + blocks[block] * order.block + within) % order.num_items
    drawn = np.random.default_rng([order.seed, epoch, lane, number]).permutation(block)
    merged = np.empty_like(items)
    merged[np.argsort(drawn, kind='stable')] = items
    return merged
