"""A frozen teacher by the name of its weights alone, for commands that read no config."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from mim_jax import work_directory
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.targets import Teacher
from mim_jax.weights import encoders, native


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
    path, flag = Path(path), f'--teacher={path}'
    if not path.exists():
        raise UserError(
            f'{flag}: there is no such file or directory; it names a weight file of '
            '`python -m mim_jax.weights`, a directory that it imported, or a work directory'
        )
    known, size = encoders.load_normalization(path, assumed=True), _image_size(path)
    fields, params = encoders.load_encoder(path)
    model = _vit(fields | (model or {}), flag=flag)
    channels = _channels(params, model, flag=flag)
    normalization = {
        name: _per_channel(given or known.get(name), channels, flag=flag, name=name)
        for name, given in (('mean', mean), ('std', std))
    }
    if min(normalization['std']) <= 0:
        raise UserError(f'--std={normalization["std"]}: every number must be above 0')
    projection = params.get('projection')
    width = None if projection is None else projection['kernel'].shape[1]
    inputs = Inputs(model.patch_size, channels, **normalization)
    teacher = Teacher(weights=str(path), model=model, projection=width, **normalization)
    # On its own a teacher is its own student: tokens stay on its grid.
    teacher = teacher.bind(model, inputs)
    params = teacher.fitted(params, what=flag)
    size = size or _size_of_tables(params, model)
    return Loaded(teacher, params, channels, size)


def _image_size(path):
    """(height, width) of a run's images, None for a weight file."""
    if not encoders.encoder_file(path).is_dir():
        return None
    return tuple(work_directory.section(path, 'data')['image_size'])


def _vit(fields, *, flag):
    if not fields:
        raise UserError(f'{flag} does not state its model: give the fields of its ViT by --model')
    return native.model_of(fields, what=flag)


def _channels(params, model, *, flag):
    p, q = model.patch_size
    try:
        rows = params['patch_embed']['kernel'].shape[0]
    except KeyError:
        raise UserError(f'{flag} holds no image encoder: patch_embed/kernel is missing') from None
    if rows % (p * q):
        raise UserError(f'{flag}: its patch_embed/kernel of {rows} rows is not of {p}x{q} patches')
    return rows // (p * q)


def _per_channel(values, channels, *, flag, name):
    if values is None:
        raise UserError(
            f'{flag} does not state the {name} of its images: give --{name}=…, one number or one '
            'per channel, for images in [0, 1]'
        )
    if len(values) not in (1, channels):
        raise UserError(f'--{name} has {len(values)} numbers, the teacher sees {channels} channels')
    return tuple(float(v) for v in values) * (channels // len(values))


def _size_of_tables(params, model):
    """(height, width) of the images for which a learned position table was made, or None."""
    table = params.get('position', {}).get('patches')
    grid = model.grid if table is None else table.shape[:2]
    return grid and tuple(n * p for n, p in zip(grid, model.patch_size, strict=True))


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
