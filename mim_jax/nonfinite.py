"""Steps that are refused because their numbers are not finite: what they are, and their record."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from mim_jax import storage
from mim_jax.errors import UserError

FOLDER = 'nonfinite'
# Of a step's metrics those that say whether its update may reach the parameters.
MUST_BE_FINITE = ('loss', 'grad_norm', 'param_norm')


def wrong(metrics: Mapping[str, float]) -> str | None:
    """What is not finite in a step's metrics, 'loss is nan'; None where all is well."""
    found = [f'{n} is {metrics[n]}' for n in MUST_BE_FINITE if not math.isfinite(metrics[n])]
    return found[0] if found else None


class Refusals:
    """The steps of a run that were left out, `count` of them until now; it may leave out `allowed`.

    Raises UserError where more were.
    """

    def __init__(self, workdir: str | Path, *, allowed: int, count: int = 0):
        if count > allowed:
            raise UserError(
                f'{workdir}: {count} of its steps were not finite and left out, more than '
                f'config.train.skip_nonfinite = {allowed} allows; raise it.'
            )
        self.workdir, self.allowed, self.count = workdir, allowed, count

    def add(
        self,
        step: int,
        metrics: Mapping[str, float],
        items: Sequence[int],
        save: Callable[[int], str],
    ) -> str:
        """Records a step that `TrainStep` refused, see `record`; returns what there is to say.

        One too many ends the run, in whose state no step has moved since: UserError, after `save`,
        which is given the step, keeps what was before and says so.
        """
        found = wrong(metrics)
        look = record(self.workdir, step, metrics, items)
        if self.count < self.allowed:
            self.count += 1
            count = f'{self.count} of at most {self.allowed}'
            return f'Step {step}: {found}; it was left out ({count}). {look}'
        raise UserError(
            f'Step {step}: {found}, so the run was stopped; the step changed nothing, '
            f'{save(step)}. {look} A lower optimizer.learning_rate or a smaller '
            'optimizer.clip_norm often helps; train.skip_nonfinite leaves such steps out, up to a '
            'number of them.'
        )


def command(workdir: str | Path, step: int) -> str:
    """The command that repeats a step and looks at it."""
    return f'python -m mim_jax.replay --workdir={shlex.quote(str(workdir))} --step={step}'


def record(
    workdir: str | Path, step: int, metrics: Mapping[str, float], items: Sequence[int]
) -> str:
    """Writes nonfinite/STEP.json (process 0 does); returns what there is to say of it.

    It holds the metrics (what is not finite as text), the numbers `items` of the batch's images in
    the training data, those of all processes in the batch's order, and the command that repeats
    the step.
    """
    path = storage.path(workdir) / FOLDER / f'{step}.json'
    look = f'{command(workdir, step)} repeats it and looks for those to blame.'
    content = {
        'step': step,
        'metrics': {name: v if math.isfinite(v) else str(v) for name, v in metrics.items()},
        'items': list(map(int, items)),
        'repeat': command(workdir, step),
    }
    if jax.process_index() == 0:
        try:
            storage.make_folder(path.parent)
            path.write_text(json.dumps(content) + '\n', encoding='utf-8')
        except OSError as error:  # what matters, the state, is yet to be saved
            return f'{path} could not be written ({error.strerror}); {look}'
    return f'{path} has the images of its batch; {look}'
