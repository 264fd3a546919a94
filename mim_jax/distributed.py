"""Joining the processes of a run."""

import contextlib
import os
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from mim_jax.errors import UserError
from mim_jax.stopping import end, say

COORDINATOR = 'MIM_JAX_COORDINATOR'
NUM_PROCESSES = 'MIM_JAX_NUM_PROCESSES'
PROCESS_ID = 'MIM_JAX_PROCESS_ID'

# A launcher that starts a single task leaves nothing to join.  JAX would still initialise, and
# under SLURM and Open MPI it would then hide all but one of the host's devices.
_TASK_COUNTS = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def initialize(*, timeout_seconds: int = 300) -> None:
    """Joins this process to the others of its run; on a host of its own it does nothing.

    To be called before anything asks JAX for devices.  What is done, the first that applies:

    1. `MIM_JAX_NUM_PROCESSES` is set: 1 means this process alone, whatever the cluster says.  More
       means that `MIM_JAX_COORDINATOR` (`host:port` of process 0, reachable from every process) and
       `MIM_JAX_PROCESS_ID` (0 to `MIM_JAX_NUM_PROCESSES` - 1) are set too, and are used.
    2. SLURM or Open MPI started a single task: nothing.
    3. `jax.distributed.initialize()` looks for a cluster that JAX knows (Cloud TPU slices on
       Compute Engine and GKE, SLURM, Open MPI, Kubernetes jobs) and joins it.  Nothing is done if
       it finds none.  Detecting is left to JAX rather than repeated here, so that a cluster that a
       later JAX knows is known here.

    A second call does nothing.

    Args:
        timeout_seconds: how long to wait for the other processes.

    Raises:
        UserError: the variables contradict each other, or the run could not be joined.  When the
            others do not arrive in time the process ends with a sentence, status 2: JAX's runtime
            would abort it.
    """
    if jax.distributed.is_initialized():
        return
    settings = _from_environment()
    if settings is None:
        if any(os.environ.get(name) == '1' for name in _TASK_COUNTS):
            return
        settings = {}
    elif settings['num_processes'] == 1:
        return
    else:
        _check_coordinator(settings, timeout_seconds=timeout_seconds)
        logging.info('Joining the other processes at %s.', settings['coordinator_address'])
    ending = threading.Timer(timeout_seconds, _end_alone, [timeout_seconds])
    ending.daemon = True
    ending.start()
    try:
        jax.distributed.initialize(initialization_timeout=timeout_seconds + 60, **settings)
    except Exception as error:  # the runtime, the metadata server and DNS raise unrelated types
        if not settings and isinstance(error, ValueError) and 'coordinator_address' in str(error):
            return  # no cluster was found to take the coordinator's address from
        reason = str(error).strip() or type(error).__name__
        raise UserError(
            f'The processes of this run could not be joined ({reason.splitlines()[0]}); '
            f'to run this one alone, set {NUM_PROCESSES}=1.'
        ) from error
    finally:
        ending.cancel()


def _end_alone(seconds: int) -> None:
    say(
        f'error: not all processes of this run came within {seconds} s: start the same command on '
        f'all hosts, see what those that ended say, or set {NUM_PROCESSES}=1 to run this one alone.'
    )
    end(2)


def is_joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


@contextlib.contextmanager
def decided_by_main(failed: str) -> Iterator[bool]:
    """A block that process 0 alone runs (it gets True, the others False), and whose failure is that
    of all: the others raise UserError `failed`, and none waits for another.
    """
    if jax.process_count() == 1:
        yield True
        return
    problem = None
    try:
        yield is_main()
    except UserError as error:
        problem = error
    bad = as_main_says(problem is not None)
    if problem is not None:
        raise problem
    if bad:
        raise UserError(f'{failed}, as process 0 says.')


def as_main_says(answer: int) -> int:
    """The answer of process 0, on every process; a bool stays one. A collective."""
    if jax.process_count() == 1:
        return answer
    from jax.experimental import multihost_utils

    return type(answer)(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def own_cores() -> int:
    """Cores for this process alone, at least 1: of those that it may run on, its share among the
    processes of the run that may run on the same. A collective.
    """
    cores = sorted(os.sched_getaffinity(0))
    sharing = 1
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        mine = np.uint32(zlib.crc32(f'{socket.gethostname()} {cores}'.encode()))
        sharing = int(np.sum(multihost_utils.process_allgather(mine) == mine))
    return max(1, len(cores) // sharing)


def is_main() -> bool:
    """Whether this is process 0: the one that prints, and writes what is written once."""
    return jax.process_index() == 0


def _from_environment() -> dict[str, object] | None:
    """The arguments of `jax.distributed.initialize` from our variables; None if none is set."""
    names = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not values:
        return None
    if values.get(NUM_PROCESSES) == '1':
        return {'num_processes': 1}
    missing = [name for name in names if name not in values]
    if missing:
        raise UserError(
            f'{" and ".join(missing)} must be set together with {" and ".join(values)}: host:port '
            'of process 0, the number of processes, and the number of this process.'
        )
    count, process = (_whole_number(name, values[name]) for name in (NUM_PROCESSES, PROCESS_ID))
    if not 0 <= process < count:
        raise UserError(
            f'{PROCESS_ID}={process} must lie from 0 to {count - 1}, as {NUM_PROCESSES}={count}.'
        )
    host, _, port = values[COORDINATOR].rpartition(':')
    if not host or not port.isdigit():
        raise UserError(
            f'{COORDINATOR}={values[COORDINATOR]} must be host:port of process 0, '
            'as in 10.0.0.1:1234.'
        )
    return {
        'coordinator_address': values[COORDINATOR],
        'num_processes': count,
        'process_id': process,
        'cluster_detection_method': 'deactivate',
    }


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f'{name}={text} must be a whole number.') from None


def _check_coordinator(settings: dict[str, object], *, timeout_seconds: int) -> None:
    """Raises UserError unless process 0 can listen at its port, or answers to the others."""
    address = settings['coordinator_address']
    host, _, port = address.rpartition(':')
    if settings['process_id'] == 0:
        try:
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(('', int(port)))
        except OSError as error:
            raise UserError(
                f'Process 0 cannot listen at port {port} of {COORDINATOR}={address} '
                f'({error.strerror}); choose another port.'
            ) from error
        return
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f'Process 0 did not answer at {COORDINATOR}={address} within '
                    f'{timeout_seconds} s ({error.strerror or error}); start it, and see that its '
                    'port is open to this host.'
                ) from error
            time.sleep(0.2)
