"""Feeding: the next batches are on the device before the step asks for them."""

import queue
import threading
import time


def device_prefetch(batches, put, *, size: int = 2):
    """Starts feeding; see `DevicePrefetch`."""
    return DevicePrefetch(batches, put, size=size)


class DevicePrefetch:
    """Iterator that runs `put(next(batches))` in a background thread, `size` batches ahead.

    Args:
      batches: iterator with `get_state()`, as `TrainBatches`.
      put: host batch -> device batch; called in the thread, so transfers overlap with the step.
      size: batches kept ready, at least 1.

    Attributes:
      state: `batches.get_state()` as it was after the batch handed out last (before the first:
        at the start). Saved with a checkpoint, it resumes with the batch after that one, however
        many had been read ahead.
      wait_seconds: how long `next` has waited so far, in total.

    An exception of `batches` or `put` is raised by the `next` that reaches it.
    """

    def __init__(self, batches, put, *, size: int = 2):
        if size < 1:
            raise ValueError(f'size is {size}, must be at least 1')
        self.state = batches.get_state()
        self.wait_seconds = 0.0
        self._batches = batches
        self._put = put
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
        batch, state, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - start
        if error is not None:
            self._ended = error
            raise error
        self.state = state
        return batch

    def close(self):
        """Ends the thread, and the workers of `batches` if it has `close`."""
        self._stop.set()
        self._thread.join()
        self._ended = self._ended or StopIteration()
        if hasattr(self._batches, 'close'):
            self._batches.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _fill(self):
        while not self._stop.is_set():
            try:
                batch = next(self._batches)
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
