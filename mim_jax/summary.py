"""What a run is, in about ten lines: what a person sees before the first step."""

import math
import textwrap
from typing import Any

import jax

from mim_jax.trainer import Trainer


def summary(trainer: Trainer, *, spec: str) -> str:
    """Lines of a run that is about to start; `spec` is the config as it was given."""
    run, program = trainer.run, trainer.program
    variables = program.abstract_state.variables
    rows = [
        ('config', f'{spec}: {_name(run.objective)}'),
        ('model', _model(run.model, variables)),
        ('data', _data(trainer)),
        ('length', _length(trainer)),
        ('devices', _devices(program.mesh)),
        ('judged', _evaluates(trainer)),
        ('saves', _saves(trainer)),
        ('workdir', f'{trainer.workdir} (config.json has every field)'),
        ('starts', _starts(trainer)),
    ]
    if note := getattr(trainer.source, 'note', None):
        rows.insert(3, ('', note))  # more of the data
    return '\n'.join(_row(name, text) for name, text in rows)


def _row(name: str, text: str) -> str:
    """One line, or several where it would be wider than a terminal's 80 columns."""
    return textwrap.fill(
        text,
        79,
        initial_indent=f'{name:<8} ',
        subsequent_indent=' ' * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _name(objective: Any) -> str:
    from mim_jax.objectives import OBJECTIVES

    return next(name for name, kind in OBJECTIVES.items() if type(objective) is kind)


def _model(model: Any, variables: dict[str, Any]) -> str:
    counts = {name: _count(tree) for name, tree in variables.items()}
    text = f'ViT, {model.depth} blocks of width {model.width}, patches of '
    text += f'{model.patch_size[0]}x{model.patch_size[1]}; {_millions(counts["params"])} trained'
    if 'teacher' in counts:
        text += f', {_millions(counts["teacher"])} frozen'
    return text


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _millions(count: int) -> str:
    return f'{count / 1e6:.3g} M parameters'


def _data(trainer: Trainer) -> str:
    from mim_jax import data

    section = trainer.run.data
    kind = next(name for name, option in data.SOURCES.items() if type(section.source) is option)
    classes = data.num_classes(trainer.source.fields)
    labels = f', {classes:,} classes' if classes else ', no labels'
    text = f'{kind}, {section.split}: {len(trainer.source):,} images{labels}'
    size = f'{section.image_size[0]}x{section.image_size[1]}'
    return f'{text}; seen at {size} pixels'


def _length(trainer: Trainer) -> str:
    batch = trainer.run.data.batch_size
    epochs = trainer.total * batch / len(trainer.source)
    return f'{trainer.total:,} steps of {batch:,} images, {epochs:.3g} epochs'


def _devices(mesh: jax.sharding.Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1)
    text = f'{mesh.size} x {kind}' + (f' ({axes})' if axes else '')
    processes = jax.process_count()
    return text if processes == 1 else f'{text}, {processes} processes'


def _evaluates(trainer: Trainer) -> str:
    every = trainer.every['evaluate']
    times = ['at the start'] if trainer.found.step is None else []
    times += [f'every {every:,} steps'] if every else []
    names = ', '.join(trainer.evaluation.evaluators)
    return f'{names}, {", ".join([*times, "at the end"])}' if names else 'not at all'


def _saves(trainer: Trainer) -> str:
    steps, minutes = trainer.every['save'], trainer.run.checkpoint.every_minutes
    texts = [f'every {steps:,} steps'] if steps else []
    texts += [f'every {minutes:g} minutes'] if minutes else []
    return ', '.join(texts) + ' and at the end' if texts else 'at the end'


def _starts(trainer: Trainer) -> str:
    if trainer.found.step is not None:
        return f'from its checkpoint of step {trainer.found.step:,}'
    if trainer.run.init.weights is not None:
        return f'from {trainer.run.init.weights}'
    return 'from random parameters'
