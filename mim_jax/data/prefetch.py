"""Feeding: the next batches are on the device before the step asks for them."""

import multiprocessing
import queue
import threading
import time

from mim_jax.errors import UserError

# Seconds: between two questions of `next` whether to go on waiting; and that `close` gives a thread
# that may be stuck in a read.
PATIENCE = 0.2
LAST_PATIENCE = 5.0


def device_prefetch(batches, put, *, size: int = 2, check=None):
    """Starts feeding; see `DevicePrefetch`."""
    return DevicePrefetch(batches, put, size=size, check=check)


class DevicePrefetch:
    """Iterator that runs `put(next(batches))` in a background thread, `size` batches ahead.

    Args:
      batches: iterator with `get_state()`, as `TrainBatches`.
      put: host batch -> device batch; called in the thread, so transfers overlap with the step.
      size: batches kept ready, at least 1.
      check: called again and again while `next` waits; what it raises ends the wait, not the
        feeding.

    Attributes:
      state: `batches.get_state()` as it was after the batch handed out last (before the first:
        at the start). Saved with a checkpoint, it resumes with the batch after that one, however
        many had been read ahead.
      wait_seconds: how long `next` has waited so far, in total.

    An exception of `batches` or `put` is raised by the `next` that reaches it. A worker of
    `batches` that was killed is a UserError of the `next` that waits for it: it may have left a
    half-written batch behind, for which Grain waits in vain.
    """

    def __init__(self, batches, put, *, size: int = 2, check=None):
        if size < 1:
            raise ValueError(f'size is {size}, must be at least 1')
        self.state = batches.get_state()
        self.wait_seconds = 0.0
        self._batches = batches
        self._put = put
        self._check = check or (lambda: None)
        self._others = set(multiprocessing.active_children())
        self._workers = None  # known once there is a batch
        # The thread holds one finished batch while the queue is full.
        self._queue = queue.Queue(maxsize=max(1, size - 1))
        self._stop = threading.Event()
        self._ended = None
        self._thread = threading.Thread(target=self._fill, name='device-prefetch', daemon=True)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._ended is not None:
            raise self._ended
        start = time.perf_counter()
        batch, state, error = self._wait()
        self.wait_seconds += time.perf_counter() - start
        if error is not None:
            self._check_workers()  # better said by us than by Grain
            self._ended = error
            raise error
        self.state = state
        return batch

    def close(self):
        """Ends the thread, and the workers of `batches` if it has `close`.

        A worker that hangs, or a read that does not return, is not waited for: the workers are
        killed, and a thread that is left behind does not keep the process alive.
        """
        self._stop.set()
        self._ended = self._ended or StopIteration()
        ending = threading.Thread(target=self._end, name='prefetch-end', daemon=True)
        ending.start()
        ending.join(LAST_PATIENCE)
        if ending.is_alive():
            for worker in {*multiprocessing.active_children()} - self._others:
                worker.kill()  # one that hangs would not end by itself, and be waited for at exit
            ending.join(LAST_PATIENCE)

    def _end(self):
        self._thread.join()
        if hasattr(self._batches, 'close'):
            self._batches.close()

    def _wait(self):
        while True:
            try:
                return self._queue.get(timeout=PATIENCE)
            except queue.Empty:
                self._check()
                self._check_workers()

    def _check_workers(self):
        killed = [worker.exitcode for worker in self._workers or () if worker.exitcode]
        if killed:
            self._ended = UserError(
                f'a data worker was ended from outside (its exit code is {killed[0]}; -9 is often '
                'a lack of memory, of which a smaller config.data.workers or data.prefetch needs '
                'less); the same command resumes from the last checkpoint, if one was saved.'
            )
            raise self._ended

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _fill(self):
        while not self._stop.is_set():
            try:
                batch = next(self._batches)
                if self._workers is None:
                    self._workers = {*multiprocessing.active_children()} - self._others
                item = self._put(batch), self._batches.get_state(), None
            except Exception as error:  # StopIteration too: it ends this iterator as well
                item = None, None, error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[2] is not None:
                return
