"""A run read back from its work directory, its program included."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mim_jax import checkpoints, data, experiment, layout
from mim_jax.experiment import Experiment
from mim_jax.program import Program
from mim_jax.sharding import MeshConfig


def read_config(workdir: str | Path) -> Experiment:
    """The config of the run in a work directory. Raises UserError if there is none."""
    return experiment.from_config(ConfigDict(layout.read_config(workdir)))


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
