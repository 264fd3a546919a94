"""Feeding ahead: order, the state of the batch handed out, errors and the end."""

import multiprocessing
import threading

import pytest

from mim_jax.data import DataConfig, device_prefetch, make_source, train_batches
from mim_jax.errors import UserError


class Counter:
    """Iterator over 0, 1, ..., with the state of a data iterator."""

    def __init__(self, length=10**9, fail_at=None):
        self.position, self.length, self.fail_at, self.closed = 0, length, fail_at, False
        self.reached = threading.Semaphore(0)

    def __next__(self):
        if self.position == self.fail_at:
            raise RuntimeError('broken disk')
        if self.position == self.length:
            raise StopIteration
        self.position += 1
        self.reached.release()
        return self.position - 1

    def get_state(self):
        return {'next': self.position}

    def close(self):
        self.closed = True


@pytest.mark.parametrize('size', [1, 2, 5])
def test_order_and_state_of_the_last_batch_handed_out(size):
    batches = Counter()
    with device_prefetch(batches, lambda x: 10 * x, size=size) as feed:
        assert feed.state == {'next': 0}
        for i in range(20):
            assert next(feed) == 10 * i
            assert feed.state == {'next': i + 1}
        assert feed.wait_seconds >= 0
    assert batches.closed


@pytest.mark.parametrize('size', [2, 3])
def test_size_batches_are_made_ahead_and_no_more(size):
    batches = Counter()
    feed = device_prefetch(batches, lambda x: x, size=size)
    for _ in range(size):
        assert batches.reached.acquire(timeout=10)
    assert not batches.reached.acquire(timeout=0.3)
    next(feed)
    assert batches.reached.acquire(timeout=10)
    assert feed.state == {'next': 1}
    feed.close()


def test_work_happens_in_another_thread():
    threads = set()

    def put(x):
        threads.add(threading.current_thread())
        return x

    with device_prefetch(Counter(), put) as feed:
        next(feed)
    assert threading.main_thread() not in threads


def test_errors_and_the_end_arrive_at_their_place():
    feed = device_prefetch(Counter(fail_at=3), lambda x: x)
    assert [next(feed) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(RuntimeError, match='broken disk'):
            next(feed)
    assert feed.state == {'next': 3}
    feed.close()
    finite = device_prefetch(Counter(length=4), lambda x: x)
    assert list(finite) == [0, 1, 2, 3]
    finite.close()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_sentence():
    config = DataConfig(image_size=(32, 32), batch_size=4, workers=1, threads=1)
    others = set(multiprocessing.active_children())
    batches = train_batches(make_source(config, split='train'), config, seed=0)
    with device_prefetch(batches, lambda x: x) as feed:
        next(feed)
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        with pytest.raises(UserError, match='a data worker was ended from outside .*-9'):
            for _ in range(1000):  # those that it had made ahead
                next(feed)
        with pytest.raises(UserError, match='a data worker'):
            next(feed)


def test_size_must_be_positive():
    with pytest.raises(ValueError, match='size is 0'):
        device_prefetch(Counter(), lambda x: x, size=0)
