"""Two real processes on this machine, and what is said when they cannot be joined."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mim_jax import distributed
from mim_jax.errors import UserError

ROOT = Path(__file__).parents[1]

# Each process holds 1 + its number; the last one alone is asked to stop.
PROGRAM = """
import os, signal
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mim_jax import distributed
from mim_jax.stopping import Stop

with Stop().listening() as stop:
    distributed.initialize(timeout_seconds=60)
    distributed.initialize()  # does nothing
    if distributed.is_joined():
        stop.joined()
    stop.saving = True
    mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))
    mine = jnp.full((jax.local_device_count(),), 1.0 + jax.process_index())
    place = NamedSharding(mesh, PartitionSpec('data'))
    whole = jax.make_array_from_process_local_data(place, mine)
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    stopped = None
    for step in range(100_000):
        if step == 3 and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), SIGNAL)
        total(whole).block_until_ready()
        if stop.received(step):
            stopped = step
            break
    cores = distributed.own_cores()
    print('RESULT', jax.process_count(), float(total(whole)), stopped, cores)
"""


CLUSTER = ('MIM_JAX_', 'SLURM_', 'OMPI_', 'JAX_COORDINATOR')


@pytest.fixture
def environment(monkeypatch):
    """Sets variables for this test, none of a cluster's or of ours being set."""
    for name in os.environ:
        if name.startswith(CLUSTER):
            monkeypatch.delenv(name)

    def set_variables(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def free_port():
    with socket.socket() as listener:
        listener.bind(('', 0))
        return listener.getsockname()[1]


def start(environment, number='SIGTERM'):
    """The program in a process of its own with one CPU device; the last sends itself a signal."""
    return start_program(PROGRAM.replace('SIGNAL', f'signal.{number}'), environment)


def start_program(program, environment):
    """A program in a process of its own with one CPU device."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
    return subprocess.Popen(
        [sys.executable, '-c', program],
        env={**ours, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(processes):
    """The words after RESULT of each process; the processes' errors if one failed."""
    outputs = [process.communicate(timeout=120) for process in processes]
    failed = [
        err for process, (_, err) in zip(processes, outputs, strict=True) if process.returncode
    ]
    assert not failed, '\n'.join(failed)
    return [out.split('RESULT', 1)[1].split() for out, _ in outputs]


@pytest.mark.parametrize('number', ['SIGTERM', 'SIGINT'])
def test_two_processes_share_a_mesh_and_stop_at_the_same_step(number):
    port = free_port()
    first, second = results(
        [
            start(
                {
                    'MIM_JAX_COORDINATOR': f'localhost:{port}',
                    'MIM_JAX_NUM_PROCESSES': '2',
                    'MIM_JAX_PROCESS_ID': str(process),
                },
                number,
            )
            for process in range(2)
        ]
    )
    assert first == second
    count, total, stopped, cores = first
    assert (int(count), float(total)) == (2, 1.0 + 2.0)
    assert int(cores) == max(1, len(os.sched_getaffinity(0)) // 2)  # of one host's
    assert int(stopped) >= 3


def test_slurm_tasks_are_joined():
    """The variables that `srun` sets; everything else is JAX's own detection."""
    job = {
        'SLURM_JOB_ID': str(os.getpid()),
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '2',
        'JAX_COORDINATOR_PORT': str(free_port()),
    }
    outputs = results(
        [
            start({**job, 'SLURM_PROCID': str(process), 'SLURM_LOCALID': str(process)})
            for process in range(2)
        ]
    )
    assert [words[:2] for words in outputs] == [['2', '3.0']] * 2


@pytest.mark.parametrize('number', ['SIGTERM', 'SIGINT'])
def test_a_process_of_its_own_stops_after_a_signal(number):
    ((count, total, stopped, cores),) = results([start({}, number)])
    assert int(cores) == len(os.sched_getaffinity(0))
    # The thread that answers signals may take a step or two.
    assert (count, float(total)) == ('1', 1.0) and int(stopped) >= 3


@pytest.mark.parametrize(
    'variables',
    [
        {},
        {'MIM_JAX_NUM_PROCESSES': '1'},
        {'MIM_JAX_NUM_PROCESSES': '1', 'SLURM_NTASKS': '4'},
        {
            'SLURM_JOB_ID': '7',
            'SLURM_STEP_NODELIST': 'node1',
            'SLURM_NTASKS': '1',
            'SLURM_PROCID': '0',
            'SLURM_LOCALID': '0',
        },
        {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.1:34911'},
    ],
)
def test_nothing_is_joined_on_a_host_of_its_own(environment, variables):
    """In a process of its own: another test may have started JAX in this one."""
    environment(**variables)
    program = (
        'import jax; from mim_jax import distributed; distributed.initialize(); '
        'print(jax.distributed.is_initialized(), jax.process_count())'
    )
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.split() == ['False', '1'], result.stderr


@pytest.mark.parametrize(
    ('variables', 'message'),
    [
        (('localhost:1', '2', None), 'MIM_JAX_PROCESS_ID must be set together with'),
        ((None, None, '1'), 'MIM_JAX_COORDINATOR and MIM_JAX_NUM_PROCESSES must be set'),
        (('localhost:1', 'two', '0'), 'MIM_JAX_NUM_PROCESSES=two must be a whole number'),
        (('localhost:1', '2', '2'), 'MIM_JAX_PROCESS_ID=2 must lie from 0 to 1'),
        (('localhost', '2', '0'), 'MIM_JAX_COORDINATOR=localhost must be host:port'),
    ],
)
def test_contradicting_variables_are_named(environment, variables, message):
    names = (distributed.COORDINATOR, distributed.NUM_PROCESSES, distributed.PROCESS_ID)
    environment(
        **{name: value for name, value in zip(names, variables, strict=True) if value is not None}
    )
    with pytest.raises(UserError, match=message):
        distributed.initialize()


def test_a_silent_process_0_is_named(environment):
    address = f'localhost:{free_port()}'
    environment(MIM_JAX_COORDINATOR=address, MIM_JAX_NUM_PROCESSES='2', MIM_JAX_PROCESS_ID='1')
    with pytest.raises(UserError, match=f'Process 0 did not answer at .*{address}'):
        distributed.initialize(timeout_seconds=0)


def test_a_taken_port_is_named(environment):
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen()
        port = other.getsockname()[1]
        environment(
            MIM_JAX_COORDINATOR=f'localhost:{port}',
            MIM_JAX_NUM_PROCESSES='2',
            MIM_JAX_PROCESS_ID='0',
        )
        with pytest.raises(UserError, match=f'cannot listen at port {port}'):
            distributed.initialize()


@pytest.mark.slow
def test_processes_that_never_come_are_told_without_native_frames():
    program = 'from mim_jax import distributed; distributed.initialize(timeout_seconds=3)'
    process = start_program(
        program,
        {
            'MIM_JAX_COORDINATOR': f'localhost:{free_port()}',
            'MIM_JAX_NUM_PROCESSES': '2',
            'MIM_JAX_PROCESS_ID': '0',
        },
    )
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = told.strip().splitlines()
    assert line.startswith('error: not all processes of this run came within 3 s: start the same')
