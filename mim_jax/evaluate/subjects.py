"""What is evaluated: the checkpoints of a run, or the weights of an encoder, as a program."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mim_jax import checkpoints, data, experiment, restoring, sharding, storage
from mim_jax import config as configs
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.experiment import Experiment
from mim_jax.objectives.base import Objective, Variables
from mim_jax.optimizers import OptimizerConfig
from mim_jax.program import Program
from mim_jax.sharding import MeshConfig
from mim_jax.warm_start import InitConfig
from mim_jax.weights import encoders

Assignments = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A program, and its variables at every step that is looked at.

    name: the work directory or the weights. steps: at least one. variables: step -> host arrays.
    """

    name: str
    program: Program
    evaluation: Evaluation
    steps: tuple[int, ...]
    variables: Callable[[int], Variables]

    @property
    def missing(self) -> str | None:
        """Which evaluators are left out, and why."""
        return self.evaluation.missing

    @property
    def confusions(self) -> dict[str, np.ndarray]:
        """[true class, predicted class] of the last evaluation, by evaluator."""
        return self.evaluation.confusions

    @property
    def settings(self) -> dict[str, Any]:
        """Under which an evaluator's figures were made: its section, and the data."""
        run = self.program.run
        data = _plain(run.data)
        for name in ('workers', 'threads', 'prefetch', 'max_corrupt_share'):
            data.pop(name)  # of no matter for the figures
        shared = {'data': data, 'use_ema': run.eval.use_ema}
        sections = {name: _plain(getattr(run.eval, name)) for name in run.eval.evaluators}
        return {name: {**shared, 'section': section} for name, section in sections.items()}

    def evaluate(self, step: int) -> dict[str, float]:
        """Figures by 'EVALUATOR/metric'."""
        frozen = self.program.pretrained() if self.evaluation.judges else {}
        values = self.evaluation.run({**frozen, **self._placed(step)})
        return {name.removeprefix('eval/'): float(value) for name, value in values.items()}

    def draw(self) -> dict[str, np.ndarray]:
        """The objective's sheets of the last step."""
        from mim_jax.visualize import draw

        run = self.program.run
        variables = {**self.program.pretrained(), **self._placed(self.steps[-1])}
        return draw(
            self.program.objective,
            variables,
            self.evaluation.sample(run.log.num_pictures),
            views=self.evaluation.views,
            step=self.steps[-1],
            seed=run.seed,
            mesh=self.program.mesh,
            run=storage.path(self.name).resolve().name,
        )

    def _placed(self, step: int) -> Variables:
        place = sharding.replicated(self.program.mesh)
        host = self.variables(step)
        return sharding.put_tree(host, jax.tree.map(lambda _: place, host))


@dataclasses.dataclass(frozen=True)
class Encoder(Objective):
    """No method: an encoder whose features are looked at."""

    def init(self, key: jax.Array, images: Any) -> Variables:
        return {'params': {'encoder': self.encoder.init(key, images)['params']}}


def of_workdir(workdir: str, assignments: Assignments, *, steps: str | None) -> Subject:
    """A run's checkpoints: `steps` is 'all' or numbers with commas; None: the newest.

    Raises UserError where there is no run, no such checkpoint, or its data is gone.
    """
    written = configs.written(restoring.read_config(workdir))
    run = experiment.from_config(configs.override(written, Experiment, assignments))
    chosen = _steps(workdir, steps)

    @functools.lru_cache(maxsize=1)
    def variables(step: int) -> Variables:
        return checkpoints.restore_variables(workdir, step=step)[0]

    return _subject(workdir, run, chosen, variables)


def of_weights(path: str, config: str, assignments: Assignments) -> Subject:
    """An encoder, on the data of a config file; how its images are normalised, their size and
    channels are the encoder's own, where no assignment says otherwise.

    Raises UserError where there is no encoder, or the data is not there.
    """
    found = encoders.complete(path, what=f'--weights={path}')
    run = experiment.from_config(configs.override(configs.load(config), Experiment, assignments))
    given = {name for name, _ in assignments}
    own = {'mean': found.mean, 'std': found.std, 'channels': found.channels}
    own |= {'image_size': found.image_size} if found.image_size else {}
    seen = {name: value for name, value in own.items() if f'data.{name}' not in given}
    # One step of training is never run, and the length of a run has to be said.
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, **seen),
        model=found.model,
        objective=Encoder(),
        init=InitConfig(),
        optimizer=OptimizerConfig(),
        train=experiment.TrainConfig(total_steps=1),
    )
    params = jax.tree.map(np.asarray, found.params)
    return _subject(path, run, (0,), lambda step: {'params': {'encoder': params}})


def _subject(name, run, steps, variables) -> Subject:
    source = data.make_source(run.data, split=run.data.split)
    run = dataclasses.replace(run, mesh=MeshConfig())
    program = Program.make(
        run, epoch_examples=len(source), fields=source.fields, devices=_devices(run)
    )
    evaluation = Evaluation(program, source)
    if not run.eval.evaluators:
        raise UserError('there is nothing to evaluate: name --evaluators=…')
    return Subject(str(name), program, evaluation, steps, variables)


def _devices(run: Experiment) -> list[jax.Device]:
    """All of them; of one process as many as divide a batch, wherever the run was trained."""
    devices = jax.devices()
    if jax.process_count() > 1:
        return devices
    batches = run.data.batch_size // run.train.accumulation, run.eval.batch_size or 0
    count = max(n for n in range(1, len(devices) + 1) if not any(b % n for b in batches))
    return devices[:count]


def _plain(section: Any) -> dict[str, Any]:
    """A config section as JSON gives it back."""
    return json.loads(json.dumps(configs.written(section).to_dict()))


def _steps(workdir: str, steps: str | None) -> tuple[int, ...]:
    saved = checkpoints.saved_steps(workdir)
    if not saved:
        raise UserError(f'{workdir}: there is no checkpoint; train the run with mim_jax.main.')
    if steps is None:
        return (saved[-1],)
    if steps == 'all':
        return tuple(saved)
    try:
        chosen = sorted({int(step) for step in steps.split(',')})
    except ValueError:
        raise UserError(f"--steps={steps}: write 'all', or numbers like 500,1000.") from None
    absent = [step for step in chosen if step not in saved]
    if absent:
        raise UserError(f'--steps={steps}: {workdir} has checkpoints of {saved}, not of {absent}.')
    return tuple(chosen)
