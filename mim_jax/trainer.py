"""The training loop: restore, next batch, step, log, evaluate, draw, save."""

import collections
import functools
import math
from pathlib import Path
from typing import Any

import jax

from mim_jax import data, fingerprints, sharding, work_directory
from mim_jax.checkpoints import Checkpoints, saved_steps
from mim_jax.distributed import StopSignal
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.experiment import Experiment
from mim_jax.logs import Logger, Throughput, peak_flops
from mim_jax.program import Program
from mim_jax.train_step import TrainState

# Steps handed to the device before their metrics are looked at: enough that it never waits for the
# host, few enough that only so many batches are in flight.
IN_FLIGHT = 2


class Trainer:
    """One run in one work directory.

    Building one reads what the run needs and so finds every mistake of the config before anything
    is written; `train` does the rest.
    """

    def __init__(self, run: Experiment, workdir: str | Path):
        self.run = run
        self.workdir = Path(workdir)
        work_directory.check(workdir, run)
        self.source = data.make_source(run.data, split=run.data.split)
        self.program = Program.make(run, epoch_examples=len(self.source), fields=self.source.fields)
        self.evaluation = Evaluation(self.program, self.source)
        read = self.program.objective.pretrained()
        self.fingerprints = {name: fingerprints.of(values) for name, values in read.items()}
        self.start = None
        if saved_steps(workdir):  # a run that resumes no longer needs what it began with
            fingerprints.check(workdir, self.fingerprints)
        else:
            self.start = self.program.start()
        if self.start:
            self.fingerprints['init'] = fingerprints.of(self.start.params)
        self.pretrained = self.program.placed(read)
        self._pictured = None  # the batch of every picture of this run
        clock = self.program.clock
        self.total = clock.total_steps
        self.every = {
            'evaluate': clock.steps(run.eval, 'every', path='eval'),
            'draw': clock.steps(run.log, 'pictures_every', path='log'),
            'save': clock.steps(run.checkpoint, 'every', path='checkpoint'),
        }

    def train(self) -> None:
        """Trains to the end, or to SIGTERM, from wherever the work directory has come to.

        Raises UserError when the loss is no longer finite; the last good checkpoint stays.
        """
        stop = StopSignal()
        checkpoints = Checkpoints(self.workdir, self.run.checkpoint, self.program.clock)
        first = checkpoints.latest_step or 0
        self.logger = Logger(
            self.workdir,
            self.run.log,
            total_steps=self.total,
            is_main=jax.process_index() == 0,
            resume_step=checkpoints.latest_step,
        )
        if first >= self.total:
            self.logger.message(f'{self.workdir}: all {self.total} steps are done already.')
            return
        if self.evaluation.missing:
            self.logger.message(self.evaluation.missing)
        state, self.batches = self._start(checkpoints)
        step_fn = self._compile()
        if first == 0:
            self._evaluate(state, 0)
        put = functools.partial(sharding.put_batch, mesh=self.program.mesh)
        feed = data.device_prefetch(self.batches, put)
        in_flight = collections.deque()
        try:
            for step in range(first + 1, self.total + 1):
                with self.speed.waiting():
                    batch = next(feed)
                state, metrics = step_fn(state, batch)
                in_flight.append((step, metrics))
                if step == first + 1:
                    jax.block_until_ready(metrics)
                    self.speed.start(step)
                while len(in_flight) > IN_FLIGHT:
                    self._log(*in_flight.popleft())
                self.logger.progress(step)

                # The last step ends the run anyway, with its evaluation.
                stopping = step < self.total and stop.received(step)
                due = {name for name in self.every if self._is_due(name, step)}
                if not due and not stopping:
                    continue
                # A checkpoint is written only once its step is known to be finite.
                while in_flight:
                    self._log(*in_flight.popleft())
                with self.speed.paused(after=state.step):
                    if 'evaluate' in due and not stopping:
                        self._evaluate(state, step)
                    if 'draw' in due and not stopping:
                        self._draw(state, step)
                    if 'save' in due or stopping:
                        checkpoints.save(step, state, feed.state)
                if stopping:
                    self.logger.message(
                        f'SIGTERM: step {step} is saved; the same command resumes from there.'
                    )
                    break
        finally:
            feed.close()
            checkpoints.close()
            self.logger.close()

    def _start(self, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
        """The state and the data, from the newest checkpoint or from the beginning."""
        batches = data.train_batches(
            self.source,
            self.run.data,
            views=self.program.views,
            seed=self.run.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        step = checkpoints.latest_step
        if step is None:
            fingerprints.record(self.workdir, self.fingerprints)
            start, self.start = self.start, None
            for line in start.lines if start else ():
                self.logger.message(line)
            return self.program.init(self.pretrained, start and start.params), batches
        state, data_state = checkpoints.restore(self.program.restorable(), step=step)
        batches.set_state(data_state)
        self.logger.message(f'{self.workdir}: resuming after step {step} of {self.total}.')
        return state.replace(variables={**self.pretrained, **state.variables}), batches

    def _compile(self) -> Any:
        traced = self.program.trace()
        step_flops = self.program.model_flops(traced)
        devices = self.program.mesh.devices.flat
        peak = peak_flops(devices[0].device_kind)
        self.speed = Throughput(
            batch_size=self.run.data.batch_size,
            total_steps=self.total,
            step_flops=step_flops,
            peak=peak and peak * len(devices),
        )
        return traced.lower().compile()

    def _is_due(self, name: str, step: int) -> bool:
        """Everything happens at the end too."""
        every = self.every[name]
        return step == self.total or bool(every and step % every == 0)

    def _log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Waits for the step's metrics, checks them, and writes them if it is time."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ('loss', 'grad_norm', 'param_norm'):
            if not math.isfinite(metrics[name]):
                saved = 'the last checkpoint in the work directory is good'
                raise UserError(
                    f'Step {step}: {name} is {metrics[name]}, so the run was stopped; {saved}. A '
                    'lower optimizer.learning_rate or a smaller optimizer.clip_norm often helps.'
                )
        if step % self.run.log.every_steps == 0 or step == self.total:
            values = {f'train/{name}': value for name, value in metrics.items()}
            if self.batches.num_corrupt:
                values['data/corrupt_images'] = self.batches.num_corrupt
            self.logger.scalars(step, values | self.speed.measure(step))

    def _evaluate(self, state: TrainState, step: int) -> None:
        values = self.evaluation.run(state.variables)
        if values:
            self.logger.scalars(step, values)

    def _draw(self, state: TrainState, step: int) -> None:
        from mim_jax.visualize import draw, write

        if self._pictured is None:
            self._pictured = self.evaluation.sample(self.run.log.num_pictures)
        sheets = draw(
            self.program.objective,
            state.variables,
            self._pictured,
            views=self.evaluation.views,
            step=step,
            seed=self.run.seed,
            mesh=self.program.mesh,
        )
        if jax.process_index() == 0:
            write(self.workdir / 'pictures', sheets, step=step)
        self.logger.pictures(step, sheets)
