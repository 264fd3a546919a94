"""The training loop: restore, next batch, step, log, save, evaluate, draw."""

import collections
import functools
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax

from mim_jax import (
    assembly,
    checkpoints,
    data,
    distributed,
    fingerprints,
    health,
    nonfinite,
    placement,
    provenance,
    sharding,
    storage,
    wandb_writer,
    work_directory,
)
from mim_jax.early_warnings import Watch
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.experiment import Experiment
from mim_jax.intervals import Interval
from mim_jax.last_words import last_words
from mim_jax.logs import Logger, Throughput, peak_flops, read_metrics
from mim_jax.program import Program
from mim_jax.stopping import Interrupted, Stop
from mim_jax.train_step import TrainState

# Steps handed to the device before their metrics are looked at: enough that it never waits for the
# host, few enough that only so many batches are in flight.
IN_FLIGHT = 2


class Trainer:
    """One run in one work directory.

    Building one reads what the run needs and so finds every mistake of the config before anything
    is written; `train` does the rest. extend: the run may become longer than it was.
    """

    def __init__(self, run: Experiment, workdir: str | Path, *, extend: bool = False):
        self.run = run
        self.workdir = storage.path(workdir)
        work_directory.check(workdir, run, extend=extend)
        wandb_writer.check(run.log.wandb)
        self.found = checkpoints.find_together(workdir)
        self.source = data.make_source(run.data, split=run.data.split)
        self.program = Program.make(run, epoch_examples=len(self.source), fields=self.source.fields)
        self.evaluation = Evaluation(self.program, self.source)
        read = self.program.objective.pretrained()
        self.fingerprints = {name: fingerprints.of(values) for name, values in read.items()}
        if hasattr(self.source, 'fingerprint'):
            self.fingerprints['data'] = self.source.fingerprint()
        self.start = None
        if self.found.step is not None:  # a run that resumes no longer needs what it began with
            fingerprints.check(workdir, self.fingerprints)
        else:
            self.start = self.program.start()
        if self.start:
            self.fingerprints['init'] = fingerprints.of(self.start.params)
        self.pretrained = self.program.placed(read)
        self.checkup = lambda state, batch: {}  # see `health.compiled_checkup`
        self._pictured = None  # the batch of every picture of this run
        clock = self.program.clock
        self.total = clock.total_steps
        if extend:
            self._check_longer()
        self.every = {
            'evaluate': clock.steps(run.eval, 'every', path='eval'),
            'draw': clock.steps(run.log, 'pictures_every', path='log'),
            'save': clock.steps(run.checkpoint, 'every', path='checkpoint'),
        }

    def _check_longer(self) -> None:
        before = work_directory.completed(self.workdir, self.run)
        steps = assembly.make_clock(before, len(self.source)).total_steps
        if self.total < steps:
            raise UserError(
                f'--extend: {self.workdir} is a run of {steps} steps, and train.total_* makes '
                f'{self.total}; give more.'
            )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the last checkpoint is there, and was evaluated."""
        return self.found.step == self.total and (
            not self.evaluation.evaluators or self._evaluated(self.total)
        )

    def kept(self) -> str:
        """What is left of this run if it ends now."""
        some = checkpoints.saved_steps(self.workdir)
        goes_on = ', the same command goes on from it' if some else ''
        return checkpoints.newest(self.workdir) + goes_on

    def _evaluated(self, step: int) -> bool:
        """Whether there are figures of an evaluation at a step, by this process or another."""
        lines = [line for line in read_metrics(self.workdir) if line['step'] == step]
        return any(name.startswith('eval/') for line in lines for name in line)

    def _missed(self, step: int) -> bool:
        """Whether the run was cut off in the evaluation of a step; the same on every process."""
        missed = bool(self.evaluation.evaluators) and not self._evaluated(step)
        return distributed.as_main_says(missed)

    def train(self, stop: Stop | None = None) -> str | None:
        """Trains to the end, or to SIGTERM or Ctrl-C, from wherever the work directory has come to.

        stop: what listens to these, see `mim_jax.stopping`.

        Returns the name of the signal that stopped it before its end, or None.

        Raises UserError when the loss is no longer finite, nothing can be saved, or another process
        saved since this trainer was built.
        """
        stop = stop or Stop()
        self.made_by = provenance.record(
            work_directory.as_dict(self.run),
            total_steps=self.total,
            # A run that resumes has not read again what it began with.
            fingerprints={**fingerprints.recorded(self.workdir), **self.fingerprints},
        )
        self.checkpoints = checkpoints.Checkpoints(
            self.workdir,
            self.run.checkpoint,
            self.program.clock,
            damaged=self.found.damaged,
            made_by=self.made_by,
        )
        if self.checkpoints.latest_step != self.found.step:
            self.checkpoints.close()
            raise UserError(
                f'{self.workdir}: another process saved there meanwhile; start the same command '
                'again.'
            )
        self.done = first = self.found.step or 0
        self.logger = Logger(
            self.workdir,
            self.run.log,
            total_steps=self.total,
            is_main=jax.process_index() == 0,
            resume_step=self.found.step,
        )
        for step, wrong in self.found.damaged.items():
            self.logger.message(
                f'{self.workdir}: the checkpoint of step {step} is damaged ({wrong}); it is kept '
                f'as checkpoints/{step}.damaged, and an older one is used.'
            )
        try:
            return self._run(first, stop)
        finally:
            self.checkpoints.close()
            self.logger.close()

    def _run(self, first: int, stop: Stop) -> str | None:
        """All that is left to do after `first` steps; the signal that cut it short, or None."""
        if self.finished:
            self.logger.message(f'{self.workdir}: all {self.total} steps are done already.')
            return None
        whole = placement.said_of_whole(self.program.abstract_state, self.run.mesh)
        for line in filter(None, (whole, self.evaluation.missing)):
            self.logger.message(line)
        self.state, self.batches, progress = self._start()
        self.refusals = nonfinite.Refusals(
            self.workdir,
            allowed=self.run.train.skip_nonfinite,
            count=progress.get('refused', 0),
        )
        own = ('learning_rate', 'param_norm', *self.program.objective.momentary)
        self.interval = Interval(own, progress.get('interval'))
        self.watch = Watch(
            read_metrics(self.workdir),
            warmup=self.program.clock.steps(self.run.optimizer, 'warmup', path='optimizer') or 0,
            workers=self.program.run.data.workers,
        )
        if first >= self.total:  # the run ended in its last evaluation
            self._look()
            self.logger.message(self._last_words())
            return None
        step_fn = self._compile()
        if first == 0:
            # What is wrong with an evaluation is better said now than after days.
            self._evaluate()
        elif self._is_due('evaluate') and self._missed(first):
            self._look([name for name in ('evaluate', 'draw') if self._is_due(name)])
        put = functools.partial(sharding.put_batch, mesh=self.program.mesh)
        self.feed = data.device_prefetch(self.batches, put, check=stop.check)
        self._seen = first, self.feed.state
        try:
            stopped = self._steps(step_fn, stop)
            self.checkpoints.wait()  # what is said to be saved is on the disk
        finally:
            self.feed.close()
        if stopped:
            words = f'step {self.done} is saved; the same command resumes from there.'
            self.logger.message(f'{stopped}: {words}')
        else:
            self.logger.message(self._last_words())
        return stopped

    def _steps(self, step_fn: Callable, stop: Stop) -> str | None:
        """All steps that remain, or those until a signal, whose name is returned."""
        first = self.done + 1
        # Steps, the data's state after them, their metrics, and a checkup of some images.
        in_flight = collections.deque()

        def log(down_to: int = 0) -> None:
            while len(in_flight) > down_to:
                self._log(*in_flight.popleft())

        try:
            while self.done < self.total:
                with jax.transfer_guard('disallow'):  # the device waits for nothing of the host's
                    with self.speed.waiting():
                        batch = next(self.feed)
                    self.state, metrics = step_fn(self.state, batch)
                    self.done += 1
                    checkup = self.checkup(self.state, batch) if self._has_line(self.done) else {}
                in_flight.append((self.done, self.feed.state, metrics, checkup))
                if self.done == first:
                    jax.block_until_ready(metrics)
                    self.speed.start(self.done)
                    self._saved_at, stop.saving = time.monotonic(), True
                log(down_to=IN_FLIGHT)
                self.logger.progress(self.done)

                # The last step ends the run anyway, with its evaluation.
                last = self.done == self.total
                stopping = None if last else stop.received(self.done)
                due = {name for name in self.every if self._is_due(name)}
                if not (due or stopping or self._long_unsaved()):
                    continue
                log()  # a checkpoint is written only once its step is known to be finite
                with self.speed.paused(after=self.state.step):
                    self._save()  # first, so that nothing that fails afterwards costs a step
                    if stopping:
                        return stopping
                    # The last look is not cut short: no later one would make up for it.
                    self._look(due, check=(lambda: None) if last else stop.check)
        except Interrupted:
            log()
            self._save()
            return stop.requested
        return None

    def _look(
        self, due: Container[str] = ('evaluate', 'draw'), check: Callable[[], None] = lambda: None
    ) -> None:
        if 'evaluate' in due:
            self._report('evaluation', functools.partial(self._evaluate, check))
        if 'draw' in due:
            self._report('pictures', self._draw)

    def _last_words(self) -> str:
        self.logger.sync()
        return last_words(read_metrics(self.workdir), total=self.total, workdir=self.workdir)

    def _report(self, what: str, function: Callable[[], None]) -> None:
        """Calls what looks at the state; where that fails, the run says so and goes on.

        Of several processes one that goes on alone would leave the others waiting: there the run
        ends, its checkpoint being saved.
        """
        try:
            function()
        except Interrupted:
            raise
        except Exception as error:
            if jax.process_count() > 1:
                raise
            kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
            self.logger.message(f'No {what} at step {self.done}: {kind}{error}')

    def _save(self) -> None:
        """Saves the state, which is that after the last step whose metrics were looked at."""
        step, data_state = self._seen
        self.logger.sync()  # a run that goes on from here has every line before
        progress = {
            'data': data_state,
            'refused': self.refusals.count,
            'interval': self.interval.state,
        }
        self.checkpoints.save(step, self.state, progress)
        self._saved_at = time.monotonic()

    def _long_unsaved(self) -> bool:
        """Whether the clock asks for a checkpoint; the same on every process."""
        minutes = self.run.checkpoint.every_minutes
        if minutes is None:
            return False
        overdue = time.monotonic() - self._saved_at > 60 * minutes
        if jax.process_count() > 1 and self.done % self.run.log.every_steps:
            return False  # asking the others takes its time
        return distributed.as_main_says(overdue)

    def all_batches(self) -> Any:
        """This process's batches as read, from the first step on."""
        return data.train_batches(
            self.source,
            self.program.run.data,
            views=self.program.views,
            seed=self.run.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _start(self) -> tuple[TrainState, Any, dict[str, Any]]:
        """The state, the data and what the host keeps beside them (`_save`), from the newest
        checkpoint or from the beginning.
        """
        batches = self.all_batches()
        step = self.found.step
        if step is None:
            fingerprints.record(self.workdir, self.fingerprints)
            start, self.start = self.start, None
            for line in start.lines if start else ():
                self.logger.message(line)
            return self.program.init(self.pretrained, start and start.params), batches, {}
        state, progress = self.checkpoints.restore(self.program.restorable(), step=step)
        batches.set_state(progress['data'])
        self.logger.message(f'{self.workdir}: resuming after step {step} of {self.total}.')
        before = provenance.read(checkpoints.directory(self.workdir) / str(step))
        for line in provenance.news(before, self.made_by):
            self.logger.message(line)
        state = state.replace(variables={**self.pretrained, **state.variables})
        return state, batches, progress

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
        self.logger.message('compiling the step …')
        began = time.monotonic()
        compiled = traced.lower().compile()
        if self.run.log.health:
            self.checkup = health.compiled_checkup(self.program)
        self.logger.message(f'compiled in {time.monotonic() - began:.0f} s')
        return compiled

    def _is_due(self, name: str) -> bool:
        """Everything happens at the end too."""
        every = self.every[name]
        return self.done == self.total or bool(every and self.done % every == 0)

    def _has_line(self, step: int) -> bool:
        return step % self.run.log.every_steps == 0 or step == self.total

    def _log(self, step: int, data_state: Any, metrics: dict, checkup: dict) -> None:
        """Waits for the step's metrics, checks them, and writes their means if it is time."""
        blocks = metrics.pop('blocks', {})
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if nonfinite.wrong(metrics):
            items = self.batches.items(step - 1)
            self.logger.message(self.refusals.add(step, metrics, items, save=self._save_before))
        else:
            self.interval.add(metrics)
        self._seen = step, data_state
        if self._has_line(step):
            values = {f'train/{name}': value for name, value in self.interval.take().items()}
            if self.refusals.count:
                values['train/refused_steps'] = self.refusals.count
            if self.batches.num_corrupt:
                values['data/corrupt_images'] = self.batches.num_corrupt
            values |= self.speed.measure(step) | health.line(self.program, blocks, checkup)
            self.logger.scalars(step, values)
            for warning in self.watch.add({'step': step, **values}):
                self.logger.message(warning)

    def _save_before(self, step: int) -> str:
        """Saves the state before a step that ends the run; says so."""
        if step == 1:
            return 'nothing was to be saved'
        self._save()
        self.checkpoints.wait()
        return f'step {step - 1} is saved'

    def _evaluate(self, check: Callable[[], None] = lambda: None) -> None:
        values = self.evaluation.run(self.state.variables, check=check)
        if values:
            self.logger.scalars(self.done, values)

    def _draw(self) -> None:
        from mim_jax.visualize import draw, write

        if self._pictured is None:
            self._pictured = self.evaluation.sample(self.run.log.num_pictures)
        sheets = draw(
            self.program.objective,
            self.state.variables,
            self._pictured,
            views=self.evaluation.views,
            step=self.done,
            seed=self.run.seed,
            mesh=self.program.mesh,
            run=self.workdir.resolve().name,
        )
        if jax.process_index() == 0:
            write(self.workdir / 'pictures', sheets, step=self.done)
        self.logger.pictures(self.done, sheets)
