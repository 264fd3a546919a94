"""Runs as processes: what is said of one that has ended."""

import subprocess
import sys
import textwrap
import types

import pytest

from mim_jax import planned
from mim_jax.errors import UserError


def process(code):
    return types.SimpleNamespace(name='mine', seed=3, command=['-c', code])


def test_the_memory_of_a_run_is_that_of_its_own_process():
    code = """
        import types
        from mim_jax import planned
        for code in ("x = b'x' * (300 << 20)", 'pass'):
            print(planned.execute(types.SimpleNamespace(name='', seed=0, command=['-c', code])))
    """
    # In a small process: one that is started counts what its parent held when it started it.
    command = [sys.executable, '-c', textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    large, small = map(int, said.split())
    assert 300 << 20 < large < 500 << 20
    assert small < 200 << 20  # not the largest of all so far


def test_a_run_that_fails_is_told_by_its_status():
    with pytest.raises(UserError, match='"mine", seed 3 stopped with status 7'):
        planned.execute(process('raise SystemExit(7)'))
    with pytest.raises(UserError, match='stopped with status -9'):
        planned.execute(process('import os; os.kill(os.getpid(), 9)'))
