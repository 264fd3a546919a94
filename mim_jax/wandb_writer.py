"""Weights & Biases as one more place for a run's scalars and pictures; imported where it is asked
for.
"""

import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mim_jax import layout, storage
from mim_jax.errors import UserError

ID_FILE = 'wandb_id'
STEP = 'step'


def check(project: str | None) -> None:
    """Raises UserError where a project is named and the package is not there."""
    if project is None:
        return
    try:
        # A folder of logs called wandb can be imported too, and has nothing in it.
        from wandb import init  # noqa: F401
    except ImportError:
        raise UserError(
            f'config.log.wandb = {project}: the package wandb is not installed: `pip install -e '
            "'.[wandb]'`, or set it to none."
        ) from None


class WandbWriter:
    """Writes into one run of a project. Its id is kept in the work directory: a run that resumes
    goes on in the same one.

    Names are those of metrics.jsonl, over the metric `step` and not W&B's own count, which may not
    go back: steps that a killed run had logged are logged again. Where and whether it sends is for
    W&B's own settings (WANDB_MODE=offline, WANDB_ENTITY, …).
    """

    def __init__(self, workdir: str | Path, project: str):
        import wandb

        workdir = storage.path(workdir).absolute()
        try:
            self._run = wandb.init(
                project=project,
                id=_run_id(workdir),
                resume='allow',
                name=workdir.name,
                # What W&B keeps on this machine.
                dir=tempfile.mkdtemp() if storage.is_remote(workdir) else str(workdir),
                config=json.loads((workdir / layout.CONFIG_FILE).read_text(encoding='utf-8')),
            )
        except Exception as error:  # as many kinds as there are reasons
            raise UserError(
                f'config.log.wandb = {project}: no run can be begun there ({error}); '
                'WANDB_MODE=offline keeps it on this machine, none does without.'
            ) from error
        self._run.define_metric('*', step_metric=STEP)
        self._image = wandb.Image

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Flat names and values of a step."""
        self._send(lambda run: run.log({STEP: step, **values}))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """uint8 [H,W,3] pictures, under pictures/NAME."""

        def log(run: Any) -> None:
            images = {f'pictures/{name}': self._image(p) for name, p in pictures.items()}
            run.log({STEP: step, **images})

        self._send(log)

    def close(self) -> None:
        self._send(lambda run: run.finish())

    def _send(self, send: Callable[[Any], None]) -> None:
        """Calls `send` with W&B's run. After a failure nothing is sent any more: the run goes on
        without, and its other files have all of it.
        """
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # whatever the service, its process or the network raises
            self._run = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            logging.warning(
                'Weights & Biases failed (%s) and gets nothing more of this run, which goes on; '
                'metrics.jsonl has all of it.',
                reason,
            )


def _run_id(workdir: Path) -> str:
    path = workdir / ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(4) + '\n', encoding='utf-8')
    return path.read_text(encoding='utf-8').strip()
