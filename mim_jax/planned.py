"""Runs as processes of their own: planned and checked together, executed, read back."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mim_jax import config as configs
from mim_jax.errors import UserError
from mim_jax.logs import read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is planned: what a person calls it, a seed, what it changes in the base config,
    the experiment that this makes, its length in steps (None: not known), and the fingerprints of
    weights that it reads, as far as they are known.
    """

    name: str
    seed: int
    base: str
    assignments: tuple[tuple[str, str], ...]
    experiment: Any
    total_steps: int | None
    workdir: Path
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The arguments of `python`."""
        fields = [f'--config.{name}={value}' for name, value in self.assignments]
        return [
            '-m',
            'mim_jax.main',
            f'--config={self.base}',
            f'--workdir={self.workdir}',
            f'--config.seed={self.seed}',
            *fields,
        ]


def built(
    base: str, assignments: tuple[tuple[str, str], ...], *, read: bool, start: bool = True
) -> tuple[Any, int | None, dict[str, str]]:
    """The run of a config, its length, and the fingerprints of its weights. The objective is bound,
    and where `read` is set its data and weights are looked at, as the run would do it first;
    otherwise there are neither length nor fingerprints. start: those of `init` too.

    Nothing is put on a device: that is for the runs.
    """
    if 'seed' in dict(assignments):
        raise UserError('config.seed is set for every run by itself: say --seeds=N, how many.')
    import jax

    from mim_jax import assembly, data, experiment, fingerprints, warm_start

    config = configs.override(configs.load(base), experiment.Experiment, list(assignments))
    run = experiment.from_config(config)
    objective = assembly.make_objective(run, fields=run.data.source.assumed_fields())
    if not read:
        return run, None, {}
    source = data.make_source(run.data, split=run.data.split)
    objective = assembly.make_objective(run, fields=source.fields)
    found = {name: fingerprints.of(values) for name, values in objective.pretrained().items()}
    images = assembly.batch_struct(run, objective)['images']
    if start and run.init.weights is not None:
        params = jax.eval_shape(lambda: objective.init(jax.random.key(0), images))['params']
        read = warm_start.load(run.init, model=run.model, params=params, inputs=objective.inputs)
        found['init'] = fingerprints.of(read.params)
    return run, assembly.make_clock(run, len(source)).total_steps, found


def execute(run: Run) -> int:
    """Runs one run to its end, its output shown. Returns the most bytes of memory that its process
    held (at the least what this one did: Linux counts it). Raises UserError where it fails.
    """
    process = subprocess.Popen([sys.executable, *run.command])
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.wait()  # it got the same Ctrl-C, and saves
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(
            f'"{run.name}", seed {run.seed} stopped with status {process.returncode} (see above); '
            'mend it and start the same command again: finished runs are kept.'
        )
    return usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def finished(run: Run) -> bool:
    """Whether a run has its last checkpoint and the figures of all its evaluators.

    Raises UserError as `figures` does, and where it lacks those of an evaluator that was asked for
    later.
    """
    from mim_jax import checkpoints

    found = figures(run)
    if run.total_steps not in checkpoints.saved_steps(run.workdir):
        return False
    judged = {name.split('/')[1] for name in found if name.startswith('eval/')}
    asked = run.experiment.eval.evaluators
    absent = [name for name in asked if name not in judged]
    if judged and absent:
        raise UserError(
            f'{run.workdir} is a finished run without figures of {", ".join(absent)}: remove it to '
            'run it again, or leave these out.'
        )
    return bool(judged) or not asked


def figures(run: Run, *, step: int | None = None) -> dict[str, float]:
    """The metrics at a step (None: the run's last); {} where the run has not come there.

    Raises UserError where the work directory holds a run of another config or of other weights:
    paths of weights may differ, for files move, but the run must have read the same numbers.
    """
    from mim_jax import fingerprints, work_directory

    if not (run.workdir / work_directory.CONFIG_FILE).exists():
        return {}
    work_directory.check(run.workdir, run.experiment)
    fingerprints.check(run.workdir, run.fingerprints)
    wanted = run.total_steps if step is None else step
    found = {}
    for values in read_metrics(run.workdir):
        if values['step'] == wanted:
            found |= values
    return found
