"""Steps that are refused because their numbers are not finite: what they are, and their record."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from mim_jax import storage

FOLDER = 'nonfinite'
# Of a step's metrics those that say whether its update may reach the parameters.
MUST_BE_FINITE = ('loss', 'grad_norm', 'param_norm')


def wrong(metrics: Mapping[str, float]) -> str | None:
    """What is not finite in a step's metrics, 'loss is nan'; None where all is well."""
    found = [f'{n} is {metrics[n]}' for n in MUST_BE_FINITE if not math.isfinite(metrics[n])]
    return found[0] if found else None


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
