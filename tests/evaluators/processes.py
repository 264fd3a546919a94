"""Evaluators in two real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

FRAME = """
import functools, json, sys
import jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(f'localhost:{port}', 2, index)
import numpy as np
sys.path.insert(0, sys.argv[3])
from tests.evaluators.splits import make_split, share
share = functools.partial(share, index=index, count=2)
"""


def run_two(code):
    """The `result` (fit for JSON) that `code` computes in each of two processes of two devices; it
    has `make_split` and `share`, the latter with this process's number.
    """
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    program = f'{FRAME}{code}\nprint("RESULT " + json.dumps(result), flush=True)\n'
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    running = [
        subprocess.Popen(
            [sys.executable, '-c', program, str(index), str(port), str(Path(__file__).parents[2])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    results = []
    for output in outputs:
        lines = [line for line in output.splitlines() if line.startswith('RESULT ')]
        assert lines, output[-2000:]
        results.append(json.loads(lines[0].removeprefix('RESULT ')))
    return results
