"""A frozen teacher by the name of its weights alone, for commands that read no config."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from mim_jax.inputs import Inputs
from mim_jax.targets import Teacher
from mim_jax.weights import encoders


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A teacher, its parameters, and what its weights say of the images it was made for.

    channels: of its images. image_size: (height, width) in pixels, None where nothing tells it.
    """

    teacher: Teacher
    params: dict[str, Any]
    channels: int
    image_size: tuple[int, int] | None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `from_flags` reads, `--teacher` among them."""
    parser.add_argument(
        '--teacher',
        metavar='PATH',
        help='a weight file, a directory of `mim_jax.weights import`, or a work directory',
    )
    of_file = 'of the images, one number or one per channel (default: as the weights state)'
    parser.add_argument('--mean', type=_floats, metavar='M,M,M', help=f'mean {of_file}')
    parser.add_argument('--std', type=_floats, metavar='S,S,S', help=f'deviation {of_file}')
    parser.add_argument(
        '--model',
        type=_fields,
        default={},
        metavar='JSON',
        help='fields of its ViT that the weights do not state, as \'{"heads": 3}\'',
    )


def from_flags(arguments: argparse.Namespace) -> Loaded:
    """The teacher that the flags name; see `load`."""
    a = arguments
    return load(a.teacher, mean=a.mean, std=a.std, model=a.model)


def load(
    path: str | Path,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model: dict[str, Any] | None = None,
) -> Loaded:
    """The teacher of a weight file, of a directory of imported weights or of a run.

    mean, std: of its images in [0, 1], one number or one per channel; None: what the file's
    metadata or the run's config states, or what is usual for the family of imported weights.
    model: ViT fields that replace or complete the stated.

    Raises UserError where there is no such file, it states too little, or it does not fit.
    """
    found = encoders.complete(
        path, what=f'--teacher={path}', option='--{}', mean=mean, std=std, model=model
    )
    normalization = {'mean': found.mean, 'std': found.std}
    inputs = Inputs(found.model.patch_size, found.channels, **normalization)
    params, width = found.params, None
    if found.projection is not None:
        params = {**params, 'projection': found.projection}
        width = found.projection['kernel'].shape[1]
    teacher = Teacher(weights=str(path), model=found.model, projection=width, **normalization)
    # On its own a teacher is its own student: tokens stay on its grid.
    teacher = teacher.bind(found.model, inputs)
    return Loaded(teacher, params, found.channels, found.image_size)


def size_flag(text: str) -> tuple[int, ...]:
    """(S,) from 'S' and (H, W) from 'H,W', in pixels: for argparse."""
    try:
        sides = tuple(int(side) for side in text.split(','))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no size in pixels, like 224 or 224,336')
    return sides


def _floats(text):
    try:
        return tuple(float(number) for number in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no list like 0.5,0.5,0.5') from None


def _fields(text):
    try:
        fields = json.loads(text)
    except json.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not like \'{{"heads": 3}}\'')
    return fields
