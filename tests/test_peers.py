"""One of two real processes ends: the other one hears why, and ends too."""

import jax
import pytest

from mim_jax import peers
from mim_jax.errors import UserError
from tests.test_distributed import free_port, start_program

# The last process fails, or the first; the other one waits for it in a collective that never comes.
PROGRAM = """
import jax
from mim_jax import distributed, peers
from mim_jax.errors import UserError
from mim_jax.stopping import Stop

distributed.initialize(timeout_seconds=60)
stop = Stop()
stop.kept = lambda: 'the checkpoint of step 5 is kept'
with peers.together(stop):
    if jax.process_index() == FAILS:
        raise ERROR
    if isinstance(FAILS, int):
        from jax._src.distributed import global_state
        global_state.client.wait_at_barrier('never', 600_000)
print('RESULT over', flush=True)
"""


def run(fails, error='None'):
    """(status, what was printed) of each of two processes."""
    program = PROGRAM.replace('FAILS', str(fails)).replace('ERROR', error)
    cluster = {'MIM_JAX_COORDINATOR': f'localhost:{free_port()}', 'MIM_JAX_NUM_PROCESSES': '2'}
    processes = [
        start_program(program, {**cluster, 'MIM_JAX_PROCESS_ID': str(number)})
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    found = zip(processes, outputs, strict=True)
    return [(process.returncode, out + err) for process, (out, err) in found]


@pytest.mark.slow
@pytest.mark.parametrize('fails', [0, 1])
def test_the_error_of_one_is_told_by_the_other(fails):
    found = run(fails, "UserError('the moon is full')")
    (own_status, own), (status, told) = found[fails], found[1 - fails]
    assert own_status == status == 2, found
    assert 'error: the moon is full' in own
    assert told.strip().splitlines()[-1] == (
        f'error: process {fails} of this run ended: the moon is full; '
        'the checkpoint of step 5 is kept.'
    )
    assert 'stack trace' not in own + told


@pytest.mark.slow
def test_another_exception_keeps_its_stack_trace():
    (own_status, own), (status, told) = run(0, "RuntimeError('odd')")
    assert (own_status, status) == (1, 2)
    assert 'Traceback' in own and 'RuntimeError: odd' in own
    assert 'process 0 of this run ended: RuntimeError: odd;' in told


@pytest.mark.slow
def test_processes_that_are_done_end_together():
    assert [status for status, _ in run(None)] == [0, 0]


def test_errors_of_a_collective_are_known_by_their_causes():
    broken, odd = jax.errors.JaxRuntimeError('Gloo: reset by peer'), OSError(28, 'disk full')
    for cause, found in ((broken, True), (TimeoutError('barrier'), True), (odd, False)):
        told = UserError('a checkpoint could not be written')
        told.__cause__ = ValueError('of a library')
        told.__cause__.__context__ = cause
        assert peers._of_a_collective(told) is found
    assert peers._of_a_collective(broken)
