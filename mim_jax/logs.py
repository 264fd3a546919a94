"""What a run says about itself: JSON lines, TensorBoard events, a terminal, and how fast it goes.

Everything here deals in Python floats: the trainer fetches device arrays one interval late, so that
logging never makes the device wait.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np

from mim_jax import storage, terminal
from mim_jax.ranges import Count, Examples, NotNegative, Number, Percent, Range

METRICS_FILE = 'metrics.jsonl'
SUPERSEDED_FILE = 'metrics.superseded.jsonl'
DIGITS = 18  # a step has no more

# TensorBoard's page "Custom Scalars": charts of several curves, by expressions for their names.
LAYOUT = {
    category: {title: ['Multiline', names] for title, names in charts.items()}
    for category, charts in {
        'Progress': {
            'loss': ['train/loss'],
            'evaluation': [r'eval/[^/]+/(top1.*|miou|rankme|lidar)'],
            'learning rate': ['train/learning_rate'],
        },
        'Health': {
            'gradient norm, by block': ['health/grad_norm/.*'],
            'update to weight, by block': ['health/update_ratio/.*'],
            'effective rank of features': ['health/effective_rank'],
            'deviation of features': ['health/feature_std'],
            'variance of predictions and targets': ['health/(prediction|target)_variance'],
            'share of tokens morphed': ['health/morphed_share'],
        },
        'Speed': {
            'images per second': ['speed/images_per_second'],
            'wait for data': ['speed/wait_share'],
        },
    }.items()
}

# Peak dense bfloat16 FLOP/s of one JAX device; the first expression found in `device_kind` wins.
# TPU: cloud.google.com/tpu/docs (v2, v3 and v7x chips show as two devices each, so half a chip).
# NVIDIA: data sheets, without sparsity; V100 and T4 have no bfloat16 units, theirs is float16.
PEAK_BF16_FLOPS: tuple[tuple[str, float], ...] = (
    (r'TPU ?v2', 22.5e12),
    (r'TPU ?v3', 61.5e12),
    (r'TPU ?v4 lite', 138e12),
    (r'TPU ?v4', 275e12),
    (r'TPU ?v5 ?(lite|e)', 197e12),
    (r'TPU ?v5', 459e12),
    (r'TPU ?v6', 918e12),
    (r'TPU ?v?7', 1153.5e12),
    (r'GB200|GB300', 2500e12),
    (r'\bB[23]00\b', 2250e12),
    (r'H100 PCIe', 756e12),
    (r'H100 NVL', 835e12),
    (r'\b(H100|H200|H800|GH200)\b', 989e12),
    (r'\b(A100|A800)\b', 312e12),
    (r'\bL40S\b', 362e12),
    (r'\bL40\b', 181e12),
    (r'\bL4\b', 121e12),
    (r'\bA10G\b', 70e12),
    (r'\bA10\b', 125e12),
    (r'V100', 125e12),
    (r'\bT4\b', 65e12),
)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Config section `log`.

    every_steps: a line with the means of the training metrics is written once per so many steps.
    health: every line says as well how the run fares (`health/…`: norms, features).
    pictures_every_*: how often pictures go to TensorBoard (at most one; none: only at the end).
    num_pictures: images per picture sheet.
    tensorboard: write TensorBoard events beside metrics.jsonl.
    wandb: the project of Weights & Biases that gets the same; none: nothing goes there.
    progress: True a progress bar, False plain lines, None a bar exactly where stderr is a terminal.
    """

    every_steps: Count = 50
    health: bool = True
    pictures_every_steps: Number | None = None
    pictures_every_epochs: NotNegative | None = None
    pictures_every_examples: Examples | None = None
    pictures_every_percent: Percent | None = None
    num_pictures: Annotated[int, Range(1, 1000)] = 8
    tensorboard: bool = True
    wandb: str | None = None
    progress: bool | None = None


class Logger:
    """Writes scalars and pictures of one run; on every process but the main one it does nothing.

    `resume_step` is the step of the restored checkpoint, None where the run starts from nothing.
    Lines of metrics.jsonl that a killed run wrote after that step are about to be computed again:
    they are moved to metrics.superseded.jsonl, so that metrics.jsonl always reads as one run.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: LogConfig,
        *,
        total_steps: int,
        is_main: bool,
        resume_step: int | None = None,
    ):
        self._is_main = is_main
        self._total_steps = total_steps
        self._file = self._events = self._wandb = self._bar = self._mirror = None
        if not is_main:
            return
        workdir = storage.path(workdir)
        storage.make_folder(workdir)
        self._mirror = storage.Mirror(workdir)
        self._mirror.fetch(METRICS_FILE, SUPERSEDED_FILE)
        local = self._mirror.local
        moved = supersede(local, step=resume_step)
        self._mirror.sync(now=True)
        self._file = open(local / METRICS_FILE, 'a', encoding='utf-8')  # noqa: SIM115
        if config.tensorboard:
            from mim_jax.events import EventFile

            purge = None if resume_step is None else resume_step + 1
            self._events = EventFile(local / 'tensorboard', purge_step=purge)
            self._events.add_custom_scalars(LAYOUT)
        if config.wandb is not None:
            from mim_jax.wandb_writer import WandbWriter

            self._wandb = WandbWriter(workdir, config.wandb)
        progress = sys.stderr.isatty() if config.progress is None else config.progress
        if progress:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps,
                initial=resume_step or 0,
                dynamic_ncols=True,
                bar_format='step {n_fmt}/{total_fmt}{postfix} |{bar}|',
            )
        if moved:
            where = 'the start' if resume_step is None else f'step {resume_step}'
            self.message(
                f'{moved} lines of {METRICS_FILE} that come after {where} or cannot be read, moved '
                f'to {SUPERSEDED_FILE}'
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes flat names such as 'train/loss'; a value that is not finite is null in JSON."""
        if not self._is_main:
            return
        values = {name: float(value) for name, value in values.items()}
        record = {'step': int(step)}
        record |= {name: v if math.isfinite(v) else None for name, v in values.items()}
        # One write per line: a kill can cut the last line short, never mix two.
        self._file.write(json.dumps(record, allow_nan=False) + '\n')
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
        if self._wandb is not None:
            self._wandb.scalars(step, values)
        self._mirror.sync()
        self._show(step, values)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Puts uint8 [H,W,3] pictures under pictures/NAME where pictures can go."""
        if self._events is not None:
            for name, picture in pictures.items():
                self._events.add_image(f'pictures/{name}', picture, step)
            self._events.flush()
        if self._wandb is not None:
            self._wandb.pictures(step, pictures)

    def sync(self) -> None:
        """What was written so far is in the work directory, wherever that is."""
        if self._mirror is not None:
            self._mirror.sync(now=True)

    def progress(self, step: int) -> None:
        """Moves the progress bar on; cheap, for every step."""
        if self._bar is not None and step > self._bar.n:
            self._bar.update(step - self._bar.n)

    def message(self, text: str) -> None:
        """Prints one line without breaking the progress bar."""
        if not self._is_main:
            return
        with contextlib.suppress(OSError):  # a run outlives its terminal
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, flush=True)

    def close(self) -> None:
        for sink in (self._file, self._events, self._wandb, self._bar, self._mirror):
            if sink is not None:
                sink.close()
        self._file = self._events = self._wandb = self._bar = self._mirror = None
        self._is_main = False

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        if self._bar is not None and 'train/loss' in values:
            self._bar.set_postfix_str(terminal.beside_bar(self._total_steps, values))
        else:
            self.message(terminal.line(step, self._total_steps, values))


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The objects of metrics.jsonl in order; a last line cut short by a kill is left out."""
    path = storage.path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    records = map(_parse, path.read_text(encoding='utf-8', errors='replace').splitlines())
    return [record for record in records if record is not None]


def supersede(workdir: str | os.PathLike, *, step: int | None) -> int:
    """Moves the lines of metrics.jsonl later than `step` (None: all) to metrics.superseded.jsonl.

    Lines that are not whole JSON objects go too. metrics.jsonl is replaced atomically and after
    the moved lines are safe: a kill in between can duplicate a superseded line, not lose one.
    Returns how many lines moved.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        return 0
    kept, moved = [], []
    text = path.read_text(encoding='utf-8', errors='replace')
    for line in text.splitlines():
        record = _parse(line)
        current = record is not None and step is not None and record['step'] <= step
        (kept if current else moved).append(line + '\n')
    if not moved and text.endswith('\n'):
        return 0
    with open(path.with_name(SUPERSEDED_FILE), 'a', encoding='utf-8') as file:
        file.writelines(moved)
    storage.write_whole(path, ''.join(kept))
    return len(moved)


def _parse(line: str) -> dict | None:
    try:
        record = json.loads(line, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get('step'), int)
    return record if known else None


def _integer(digits: str) -> int | float:
    """An integer that is no step is a figure like others, infinite where it is beyond floats."""
    return int(digits) if len(digits) <= DIGITS else float(digits)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device by its `jax.Device.device_kind`, None if unknown."""
    for pattern, flops in PEAK_BF16_FLOPS:
        if re.search(pattern, device_kind):
            return flops
    return None


class Throughput:
    """Times the steps of the loop, without the first compilation, evaluation and checkpoints.

    Call `start` once the first step has run to its end, wrap the wait for data in `waiting()` and
    everything that is not training in `paused(after=state)`, and ask `measure` once per interval.

    batch_size: images per step over all processes.
    step_flops: FLOPs of one step over all devices, None if unknown.
    peak: FLOP/s of all devices together, None if unknown; MFU is reported if both are known.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        total_steps: int,
        step_flops: float | None = None,
        peak: float | None = None,
        clock=time.perf_counter,
    ):
        self._batch_size = batch_size
        self._total_steps = total_steps
        self._flops_share = step_flops / peak if step_flops and peak else None
        self._clock = clock
        self._first_step = self._last_step = None

    def start(self, step: int) -> None:
        """From here on time counts; `step` steps are done."""
        self._first_step = self._last_step = step
        self._first_time = self._last_time = self._clock()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch."""
        began = self._clock()
        yield
        if self._first_step is not None:
            self._waited += self._clock() - began

    @contextlib.contextmanager
    def paused(self, *, after=None) -> Iterator[None]:
        """Around evaluation, checkpoints and pictures.

        `after`: arrays of the last step; steps run asynchronously, so their time would otherwise
        fall into the pause.
        """
        if after is not None:
            import jax

            jax.block_until_ready(after)
        began = self._clock()
        yield
        if self._first_step is not None:
            self._paused += self._clock() - began

    def measure(self, step: int) -> dict[str, float]:
        """Speeds since the last call, `step` steps being done; empty before anything was timed.

        images_per_second, step_seconds, wait_share (of the step time, 0..1), mfu (0..1) exclude
        pauses; eta_seconds, the time until the last step, counts them at their rate so far.
        """
        if self._first_step is None:
            self.start(step)
            return {}
        now = self._clock()
        steps, seconds = step - self._last_step, now - self._last_time - self._paused
        if steps <= 0 or seconds <= 0:
            return {}
        step_seconds = seconds / steps
        speeds = {
            'speed/images_per_second': self._batch_size / step_seconds,
            'speed/step_seconds': step_seconds,
            'speed/wait_share': min(1.0, self._waited / seconds),
        }
        if self._flops_share is not None:
            speeds['speed/mfu'] = self._flops_share / step_seconds
        overall = (now - self._first_time) / (step - self._first_step)
        speeds['speed/eta_seconds'] = overall * max(0, self._total_steps - step)
        self._last_step, self._last_time = step, now
        self._waited = self._paused = 0.0
        return speeds
