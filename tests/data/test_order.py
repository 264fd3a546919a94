"""Orders of the items: blocks of neighbours, lanes of batches, epochs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mim_jax.data import DataConfig
from mim_jax.data.order import WINDOW, BlockOrder, order

orders = st.builds(
    BlockOrder,
    num_items=st.integers(1, 400),
    block=st.integers(1, 30),
    batch_size=st.sampled_from([1, 2, 6, 8, 24, 64]),
    seed=st.integers(0, 2**32 - 1),
)


def epoch_of(found, epoch):
    """The items of an epoch in their order."""
    first = epoch * found.num_items
    numbers = np.array([found(i) for i in range(first, first + found.num_items)])
    np.testing.assert_array_equal(numbers // found.num_items, epoch)
    return numbers % found.num_items


@settings(deadline=None)
@given(orders, st.integers(0, 5))
def test_an_epoch_has_every_item_once(found, epoch):
    np.testing.assert_array_equal(np.sort(epoch_of(found, epoch)), np.arange(found.num_items))


@settings(deadline=None)
@given(orders, st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_any_example_can_be_asked_for_first(found, examples):
    """A resumed run, another worker."""
    numbers = [found(i) for i in examples]
    again = BlockOrder(found.num_items, found.block, found.batch_size, found.seed)
    assert [again(i) for i in reversed(examples)] == numbers[::-1]


def streams(items, num_items):
    """Of items in the order that they are read: for each stretch of neighbours in the storage, the
    times at which its items are read [items of the stretch], the storage being a ring.
    """
    when = np.full(num_items, -1)
    when[items] = np.arange(len(items))
    inside = when >= 0
    if inside.all():
        return [when]
    start = np.flatnonzero(inside & ~np.roll(inside, 1))
    ring = np.concatenate([when, when])
    return [ring[a : a + np.argmin(ring[a:] >= 0)] for a in start]


@pytest.mark.parametrize('processes', [1, 2, 8])
@settings(deadline=None)
@given(orders, st.integers(0, 3))
def test_a_process_reads_blocks_of_its_own_from_first_to_last(processes, found, epoch):
    assume(found.batch_size % processes == 0)
    items = epoch_of(found, epoch)
    examples = epoch * found.num_items + np.arange(found.num_items)
    process = examples % found.batch_size // (found.batch_size // processes)
    assume(found.lanes % processes == 0)
    jumps = 0
    for number in range(processes):
        mine = items[process == number]
        for times in streams(mine, found.num_items):
            # A stretch may be several blocks that lie together by chance.
            jumps += 1 + np.count_nonzero(np.diff(times) < 0)
    blocks = -(-found.num_items // found.block)
    # A block may be cut where a lane or a window ends, and the ring where it begins.
    windows = found.num_items // (found.block * WINDOW) + found.lanes
    assert jumps <= blocks + windows + found.lanes + 1


@settings(deadline=None)
@given(orders, st.integers(0, 3))
def test_few_blocks_are_open_at_a_time(found, epoch):
    items = epoch_of(found, epoch)
    examples = epoch * found.num_items + np.arange(found.num_items)
    lane = examples % found.batch_size // (found.batch_size // found.lanes)
    for number in range(found.lanes):
        mine = items[lane == number]
        size = found.block * WINDOW
        for first in range(0, len(mine), size):
            assert len(streams(mine[first : first + size], found.num_items)) <= WINDOW + 1


def test_epochs_and_seeds_differ_and_blocks_meet_others():
    found = BlockOrder(num_items=5000, block=10, batch_size=50, seed=0)
    first, second = epoch_of(found, 0), epoch_of(found, 1)
    other = epoch_of(BlockOrder(num_items=5000, block=10, batch_size=50, seed=1), 1)
    for a, b in ((first, second), (second, other), (first, other)):
        # Two random orders agree in one place on average.
        assert np.count_nonzero(a == b) < 10
    # Blocks begin elsewhere in every epoch, and the first item of one begins with a block.
    assert len({found(5000 * epoch) % 10 for epoch in range(20)}) > 4
    # A batch has items of most of the blocks that its two lanes have open.
    jumps = np.diff(np.sort(first.reshape(100, 50), axis=1)) != 1
    assert 1 + jumps.sum(axis=1).mean() > 0.75 * found.lanes * WINDOW


def test_where_an_item_comes_does_not_depend_on_its_number():
    """Mean place of the first and of the last items over the epochs, within four deviations."""
    found = BlockOrder(num_items=203, block=10, batch_size=7, seed=0)
    places = np.array([np.argsort(epoch_of(found, epoch)) for epoch in range(200)])
    expected, deviation = 101, 203 / np.sqrt(12 * 200)
    for item in (0, 1, 100, 201, 202):
        assert abs(places[:, item].mean() - expected) < 4 * deviation


def test_without_blocks_it_is_grains_and_without_shuffle_the_sources():
    numbers = order(10, DataConfig(shuffle=False), seed=0)
    assert [numbers[i] % 10 for i in range(20)] == [*range(10)] * 2
    shuffled = order(10, DataConfig(), seed=0)
    found = [shuffled[i] % 10 for i in range(20)]
    assert sorted(found[:10]) == sorted(found[10:]) == [*range(10)]
    assert found[:10] != found[10:]


def test_blocks_without_shuffle_are_refused():
    with pytest.raises(ValueError, match='shuffle_block is a way to shuffle'):
        DataConfig(shuffle=False, shuffle_block=8)
