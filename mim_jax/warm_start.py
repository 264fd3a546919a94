"""A run that starts from weights: the config section `init`, and what it takes from where."""

import dataclasses
from typing import Any

import numpy as np

from mim_jax import checkpoints, storage, work_directory
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT
from mim_jax.ranges import Number
from mim_jax.weights import adapting, encoders, fitting

FIELD = 'config.init.weights'


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Config section `init`: the parameters from which a fresh run starts; a resumed one has its
    own.

    weights: a work directory, a folder or file of `mim_jax.weights`; None: all is drawn at random.
    step: of a work directory, which checkpoint; None: the newest.
    average: of a work directory, its average of the parameters or (False) the parameters; None:
      the average of every part of which it keeps one.
    parts: of the parameters, that are taken. The encoder is brought to this run's grid and tables;
      others come from a work directory of the same shapes.
    """

    weights: str | None = None
    step: Number | None = None
    average: bool | None = None
    parts: tuple[str, ...] = ('encoder',)

    def __post_init__(self):
        for name in ('step', 'average'):
            if self.weights is None and getattr(self, name) is not None:
                raise ValueError(f'{name} = {getattr(self, name)} needs weights, of which it is.')
        if not self.parts:
            raise ValueError('parts names nothing to take: name parts, or set weights to none.')


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from.

    params: host arrays, nested as the run's parameters, which may have more. lines: what was taken,
    resized, added up, left fresh and left out, for a person.
    """

    params: dict[str, Any]
    lines: tuple[str, ...]


def load(config: InitConfig, *, model: ViT, params: dict[str, Any], inputs: Inputs) -> Start | None:
    """Reads what the section `init` names; None where it names nothing.

    Args:
        model: the run's encoder.
        params: the run's parameters, ShapeDtypeStructs.
        inputs: the run's images.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    if config.weights is None:
        return None
    for part in config.parts:
        if part not in params:
            raise UserError(
                f'config.init.parts names {part!r}, but the parameters of this run have the parts '
                f'{", ".join(sorted(params))}.'
            )
    what = f'{FIELD}: {config.weights}'
    stated, found, origin = _read(config, what=what)
    started, lines = {}, [f'{what}{origin}']
    for part, values in found.items():
        if part == 'encoder':
            adapted = adapting.adapt(stated, values, model, params[part], what=what)
            started[part] = adapted.params
            lines += _described(adapted)
        else:
            fitting.check_params(values, params[part], what=f'{what}: its {part}')
            started[part] = values
            lines.append(f'  {part}: taken whole')
    fresh = [part for part in params if part not in started]
    if fresh:
        lines.append(f'  left fresh: {", ".join(fresh)}')
    lines += _other_images(config.weights, inputs)
    return Start(started, tuple(lines))


def _read(config, *, what):
    """(ViT fields of the encoder, parameters by part, what is said of where they come from)."""
    path = storage.path(config.weights)
    if not path.exists():
        raise UserError(f'{what} does not exist; it names {encoders.KINDS}.')
    encoders.check_directory(path, what=what)
    try:
        if not encoders.encoder_file(path).is_dir():
            others = [part for part in config.parts if part != 'encoder']
            if others:
                raise UserError(
                    f'{path} has an encoder alone; take {", ".join(others)} of config.init.parts '
                    'from a work directory.'
                )
            options = {'step': config.step, 'average': config.average}
            stated, params = encoders.load_encoder(path, **options)
            return stated, {'encoder': params}, ''
        stated = dict(work_directory.section(path, 'model'))
        variables, step = checkpoints.restore_variables(path, step=config.step)
        found, averaged = {}, []
        for part in config.parts:
            source = work_directory.chosen(
                variables, average=config.average, part=part, workdir=path
            )
            found[part] = source[part]
            averaged += [part] if source is variables.get('ema') else []
    except UserError as error:
        raise UserError(f'{FIELD}: {error}') from error
    origin = f', step {step}'
    if averaged:
        origin += f', the average of its {" and ".join(averaged)}'
    return stated, found, origin


def _described(adapted):
    """The lines on an encoder."""
    lines = [f'  encoder: {len(adapted.taken)} parameters taken as they are']
    for title, texts in (
        ('resized', adapted.resized),
        ('made', adapted.made),
        ('left fresh', adapted.fresh),
        ('left out', adapted.left_out),
    ):
        if texts:
            lines.append(f'  encoder, {title}: {", ".join(texts)}')
    return lines


def _other_images(weights, inputs):
    """A line where the weights were made for images that are normalised otherwise."""
    known = encoders.load_normalization(weights, assumed=True)
    differ = [
        f'{name} {values}, here {tuple(getattr(inputs, name))}'
        for name, values in known.items()
        if not _close(values, getattr(inputs, name))
    ]
    if not differ:
        return []
    return [f'  note: it was made for images of {"; ".join(differ)}']


def _close(one, other):
    return len(one) == len(other) and np.allclose(one, other, atol=1e-3)
