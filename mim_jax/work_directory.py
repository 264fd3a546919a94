"""A work directory: the config it belongs to, and what can be read back from it."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mim_jax import checkpoints, config, data, experiment
from mim_jax.errors import UserError
from mim_jax.experiment import Experiment
from mim_jax.models.vit import ViT
from mim_jax.program import Program
from mim_jax.sharding import MeshConfig
from mim_jax.weights.folders import check_folder

CONFIG_FILE = 'config.json'
SECTIONS = ('data', 'objective', 'model')  # some that every run's config has


def claim(workdir: str | Path, run: Experiment) -> None:
    """Writes the config of a run into its work directory, or checks that it belongs there.

    Raises UserError as `check` does, and where `workdir` cannot be a directory to write in; nothing
    is written then.
    """
    workdir = Path(workdir)
    check_folder(workdir)
    check(workdir, run)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / CONFIG_FILE
        temporary = path.with_suffix('.tmp')
        temporary.write_text(json.dumps(as_dict(run), indent=2) + '\n', encoding='utf-8')
        os.replace(temporary, path)


def check(workdir: str | Path, run: Experiment) -> None:
    """Raises UserError, naming the fields, where a work directory holds a run of another config.

    Fields that do not alter the numbers of a run may differ (`experiment.RESUMABLE`).
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        return
    changed = [
        line
        for line in config.differences(_read(path), as_dict(run))
        if not any(re.match(pattern, line) for pattern in experiment.RESUMABLE)
    ]
    if changed:
        raise UserError(
            f'--workdir={workdir} holds a run of another config ({"; ".join(changed)}); '
            'choose another work directory, or set these fields back to resume it.'
        )


def as_dict(run: Experiment) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(config.written(run).to_dict()))


def read_config(workdir: str | Path) -> Experiment:
    """The config of the run in a work directory. Raises UserError if there is none."""
    path = Path(workdir) / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f'{workdir}: there is no {CONFIG_FILE}, so this is not a work directory of '
            'mim_jax.main; name one in which a run was started.'
        )
    return experiment.from_config(ConfigDict(_read(path)))


def restore_run(
    workdir: str | Path, *, step: int | None = None
) -> tuple[Program, dict[str, Any], int]:
    """The program of a finished or running run, its variables (frozen networks included), its step.

    Raises UserError when the directory holds no run, no such checkpoint, or the data is gone.
    """
    run = read_config(workdir)
    variables, step = checkpoints.restore_variables(workdir, step=step)
    source = data.make_source(run.data, split=run.data.split)
    # Looking at a run takes one device, whatever it was trained on.
    run = dataclasses.replace(run, mesh=MeshConfig(data=1))
    program = Program.make(
        run,
        epoch_examples=len(source),
        fields=source.fields,
        devices=jax.local_devices()[:1],
    )
    return program, {**program.pretrained(), **variables}, step


def load_encoder(workdir: str | Path) -> tuple[ViT, Any]:
    """The encoder of a run and its parameters (host arrays), averaged if the run averages."""
    run = read_config(workdir)
    variables, _ = checkpoints.restore_variables(workdir)
    return run.model, variables.get('ema', variables['params'])['encoder']


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(
            f'{path} cannot be read ({error}); the work directory is damaged.'
        ) from None
    if not isinstance(found, dict) or not all(isinstance(found.get(s), dict) for s in SECTIONS):
        raise UserError(
            f'{path.parent} is not a work directory of mim_jax.main: its {CONFIG_FILE} is not that '
            "of a run; if it holds another project's weights, `python -m mim_jax.weights import` "
            'reads them.'
        )
    return found
