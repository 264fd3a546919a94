"""The run that the faults happen to: tiny, started as a user starts it, in processes of its own."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from mim_jax import checkpoints, fingerprints
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT
from mim_jax.targets import Teacher
from mim_jax.weights import native

ROOT = Path(__file__).parents[2]
# Seconds until a process that should end is a failure, on a machine that is busy.
PATIENCE = 900
CLUSTER = ('MIM_JAX_', 'SLURM_', 'OMPI_', 'JAX_COORDINATOR')
STEPS, EVALUATED = 12, 8  # the last step; the evaluation in between
CONFIG = """
'''Small, with what a resumed run could get wrong: an average, drop path, crops, jitter.'''
from mim_jax.config import option
from mim_jax.data.sources import SOURCES
from mim_jax.experiment import default_config

def get_config(method='simmim'):
    config = default_config('dtm' if method == 'teacher' else method)
    config.data.update(image_size=(16, 16), batch_size=8, flip=0.5)
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    config.data.crop.mode = 'random'
    config.data.source = option(SOURCES, 'folder', path='IMAGES')
    config.model.update(
        patch_size=(4, 4), width=16, depth=1, heads=2, mask_token=True, drop_path=0.1
    )
    if method == 'teacher':
        config.objective.masking.update(num_masked=6, min_block=2)
        config.objective.target.model.update(TEACHER)
    config.optimizer.update(learning_rate=1e-3, scaling='none')
    config.train.update(total_steps=12, ema=dict(decay=0.9))
    config.checkpoint.every_steps = 2
    config.eval.every_steps = 8
    config.eval.evaluators = ('knn',)
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=1)
    return config
"""
TEACHER = dict(patch_size=(4, 4), width=16, depth=1, heads=2)


class Process:
    """One process of a run. `output` is all that it has printed so far."""

    def __init__(self, command, *, folder, env, limits=None):
        self._began = time.monotonic()
        self._popen = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            preexec_fn=limits,
        )
        self.pid = self._popen.pid
        self.output = ''
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def age(self):
        """Seconds since its start."""
        return time.monotonic() - self._began

    @property
    def status(self):
        return self._popen.poll()

    def reached(self, found):
        """Waits until `found()` holds or the process has ended, and says whether it holds."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not found() and self._reader.is_alive():
                assert time.monotonic() < deadline, f'nothing happens:\n{self.output}'
                self._changed.wait(0.002)  # what is on the disk is no output
        return found()

    def send(self, number):
        if self.status is None:
            os.kill(self.pid, number)

    def end(self, *, within=PATIENCE):
        """Waits for the end; gives the status. One that does not end is killed and a failure."""
        try:
            self._popen.wait(within)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGCONT)
            self._popen.kill()
            self._reader.join(PATIENCE)
            raise AssertionError(f'did not end within {within} s:\n{self.output}') from None
        self._reader.join(PATIENCE)
        return self._popen.returncode

    def _read(self):
        for line in self._popen.stdout:
            with self._changed:
                self.output += line
                self._changed.notify()


class Lab:
    """A folder for all trials, with the compiled programs that they share."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._count = 0

    def work(self):
        """A new folder with the config, in which runs have the work directory `work`."""
        self._count += 1
        folder = self.folder / f'trial{self._count}'
        folder.mkdir(parents=True)
        text = f'TEACHER = {TEACHER}\n{CONFIG}'
        (folder / 'tiny.py').write_text(text.replace('IMAGES', str(self.images())))
        return folder

    def start(self, folder, *arguments, processes=1, limits=None):
        """The processes of a run, each with one CPU device."""
        ours = {name: v for name, v in os.environ.items() if not name.startswith(CLUSTER)}
        ours |= {
            'PYTHONPATH': str(ROOT),
            'PYTHONUNBUFFERED': '1',
            'JAX_PLATFORMS': 'cpu',
            'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'compiled'),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'XLA_FLAGS': '',
            'NPROC': '16',  # simulated devices may wait for each other with fewer threads
        }
        with socket.socket() as listener:
            listener.bind(('', 0))
            port = listener.getsockname()[1]
        cluster = {
            'MIM_JAX_COORDINATOR': f'localhost:{port}',
            'MIM_JAX_NUM_PROCESSES': str(processes),
        }
        command = [sys.executable, '-m', 'mim_jax.main', '--config=tiny.py', '--workdir=work']
        return [
            Process(
                [*command, *arguments],
                folder=folder,
                env={**ours, **cluster, 'MIM_JAX_PROCESS_ID': str(number)},
                limits=limits,
            )
            for number in range(processes)
        ]

    def run(self, folder, *arguments, processes=1, status=0):
        """Runs to the end; gives what process 0 printed."""
        run = self.start(folder, *arguments, processes=processes)
        found = [process.end() for process in run]
        assert found == [status] * processes, f'status {found}:\n' + '\n-- the other one:\n'.join(
            p.output for p in run
        )
        return run[0].output

    @functools.cache  # noqa: B019 (a lab lives as long as the campaign)
    def images(self):
        """A folder with 40 training and 16 test images of three classes."""
        root, draws = self.folder / 'images', np.random.default_rng(0)
        for split, count in (('train', 40), ('test', 16)):
            for number in range(count):
                path = root / split / 'abc'[number % 3] / f'{number:02}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        return root

    @functools.cache  # noqa: B019
    def teacher(self):
        """A file with the weights of a teacher, drawn at random."""
        inputs = Inputs((16, 16), 3, (0.5,) * 3, (0.25,) * 3)
        made = Teacher(model=ViT(**TEACHER))
        made = made.bind(made.model, inputs)
        path = self.folder / 'teacher.safetensors'
        params = jax.jit(made.init)(jax.random.key(7))
        native.save(path, params, metadata=native.encoder_metadata(made.model))
        return path

    @functools.cache  # noqa: B019
    def whole(self, processes=1):
        """A folder with a run that nothing happened to, and the seconds until it compiled."""
        folder = self.work()
        run = self.start(folder, processes=processes)
        run[0].reached(lambda: 'compiling the step' in run[0].output)
        seconds = run[0].age
        told = [process.output for process in run if process.end()]
        assert not told, '\n'.join(told)
        return folder, seconds

    def assert_whole(self, folder, processes=1):
        """The run in `folder` equals one that nothing happened to: each line of its log but for
        the speeds, and its last parameters.
        """
        expected, _ = self.whole(processes)
        assert figures(folder) == figures(expected), 'other figures in metrics.jsonl'
        assert parameters(folder) == parameters(expected), 'other parameters'


def figures(folder):
    """The lines of metrics.jsonl without what depends on the clock; each must be whole."""
    lines = map(json.loads, (folder / 'work/metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith('speed/')} for line in lines]


def parameters(folder):
    """The fingerprint of what the last checkpoint holds; its step must be the last."""
    variables, step = checkpoints.restore_variables(folder / 'work')
    assert step == STEPS, f'the last checkpoint is that of step {step}'
    return fingerprints.of(variables)


def one_sentence(output):
    """The last line of what a run printed, an error; no stack trace and no native frames."""
    for sign in ('Traceback', '*** Check failure', 'Stack trace', '@     0x', 'Fatal Python'):
        assert sign not in output, f'{sign}:\n{output}'
    # Python's own tracker, a process that ends last, may say that it removed what a worker held.
    lines = (
        re.sub(r'\S+resource_tracker\.py.*\n.*warnings\.warn.*\n', '', output).strip().splitlines()
    )
    assert lines and lines[-1].startswith('error: '), f'no sentence at the end:\n{output}'
    return lines[-1]


def stop_after(lab, folder, step, *arguments):
    """Runs until a step was logged, then stops the run by SIGTERM: the rest is for a resume."""
    (process,) = lab.start(folder, *arguments)
    process.reached(lambda: f'\nstep {step:>2}/{STEPS}' in process.output)
    process.send(signal.SIGTERM)
    assert process.end() == 0, process.output
