"""The processes of a run look after each other: none waits for ever for one that is gone.

A collective or a checkpoint waits for all processes, so that one which ended leaves the others
hanging. A thread in each process therefore gives a sign every few seconds, looks for those of the
others, and ends its process with a sentence where one gives none, or has said that it ends.

JAX's runtime has a watch of its own, which takes longer and ends a process by an abort. It is left
with the death of process 0, through which all of this goes: there it is at once.
"""

import concurrent.futures
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax

from mim_jax.errors import UserError
from mim_jax.stopping import Stop, end, say

# Seconds: between two signs; without one from a process until it counts as gone; that a process
# which hears of it has to say something better itself; that process 0 stays for the others at most.
INTERVAL = 3
LATE = 30
GRACE = 2
FAREWELL = 20
ALIVE, PARTED = 'mim_jax/peers/alive/', 'mim_jax/peers/parted/'


@contextlib.contextmanager
def together(stop: Stop) -> Iterator[None]:
    """Around all that the processes of a run do together; alone it does nothing.

    An exception, and a signal that ends this process, are told to the others, which end too; they
    and this one do so at once, with status 2 (1 where the exception is not the user's).
    """
    if not jax.distributed.is_initialized():
        yield
        return
    watch = _Watch(stop)
    stop.parting = watch.part
    try:
        yield
        watch.wait_for_all()
    except Exception as error:
        if _of_a_collective(error):
            # It breaks where another process ended, which is better said by the watch.
            watch.thread.join(INTERVAL + LATE + GRACE)
        ours = isinstance(error, UserError)
        if ours:
            print(f'error: {error}', file=sys.stderr)
        else:
            traceback.print_exception(error)
        watch.part(str(error) if ours else f'{type(error).__name__}: {error}')
        sys.stdout.flush()
        end(2 if ours else 1)


def _of_a_collective(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Watch:
    """The thread, and what its process tells the others."""

    def __init__(self, stop: Stop):
        # There are no public names for these; `jax.process_index` would wait for the others.
        from jax._src.distributed import global_state

        self._client = global_state.client
        self._own, self._count = global_state.process_id, global_state.num_processes
        self._stop = stop
        self._ends = threading.Event()  # this process does so by itself
        self.thread = threading.Thread(target=self._watch, name='peers', daemon=True)
        self.thread.start()

    def part(self, why: str) -> None:
        """Tells the others that this process ends."""
        self._ends.set()
        reason = (why.strip() or 'without a word').splitlines()[0].rstrip('.')
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f'{PARTED}{self._own}', reason)
        if self._own == 0:
            self._stay(gone=[])

    def wait_for_all(self) -> None:
        """Until all processes are done; one that is late is not missed while it lives."""
        self._client.wait_at_barrier('mim_jax/peers/end', 24 * 3600 * 1000)
        self._ends.set()
        self.thread.join()

    def _stay(self, *, gone: list[int]) -> None:
        """Until all processes but those that are gone came here, having said why they end: process
        0 would take away the means by which the others hear of it.
        """
        rest = [number for number in range(self._count) if number not in gone]
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.wait_at_barrier(f'mim_jax/peers/{gone}', FAREWELL * 1000, rest)

    def _watch(self) -> None:
        signs = {number: ('', time.monotonic()) for number in range(self._count)}
        count = 0
        asking = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        while not self._ends.wait(INTERVAL):
            count += 1
            try:
                found = asking.submit(self._gone, count, signs).result(timeout=LATE)
            except TimeoutError:
                found = [0], f'process 0 of this run is gone or hangs: no answer for {LATE} s'
            if found and not self._ends.wait(GRACE):
                gone, why = found
                say(f'error: {why}; {self._stop.kept_words()}.')
                if 0 not in gone:
                    self._stay(gone=gone)
                end(2)
        asking.shutdown()

    def _gone(
        self, count: int, signs: dict[int, tuple[str, float]]
    ) -> tuple[list[int], str] | None:
        """Gives the sign `count`, and says which processes are gone and how.

        signs: by process, its last one and when it was first seen; updated.
        """
        try:
            self._client.key_value_set(f'{ALIVE}{self._own}', str(count), allow_overwrite=True)
            parted = self._client.key_value_dir_get(PARTED)
            alive = self._client.key_value_dir_get(ALIVE)
        except jax.errors.JaxRuntimeError:
            return [0], 'process 0 of this run is gone'
        for name, reason in parted:
            number = int(name.rpartition('/')[2])
            # Process 0 stays until the others have said so.
            return [number] if number else [], f'process {number} of this run ended: {reason}'
        now = time.monotonic()
        for name, sign in alive:
            number = int(name.rpartition('/')[2])
            if signs[number][0] != sign:
                signs[number] = sign, now
        late = [number for number, (_, seen) in signs.items() if now - seen > LATE]
        if not late:
            return None
        which = ', '.join(map(str, late))
        return late, f'process {which} of this run is gone or hangs: it gave no sign for {LATE} s'
