"""An encoder by its path: a file of ours, a folder that `import` made, or a work directory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import storage, work_directory
from mim_jax.errors import UserError
from mim_jax.models.vit import ViT
from mim_jax.weights import fitting, native

KINDS = 'a weight file of `python -m mim_jax.weights`, its import folder, or a work directory'


def encoder_file(path):
    """The encoder's file in a folder that `import` made; any other path as it is."""
    path = storage.path(path)
    file = path / 'encoder.safetensors'
    return file if file.is_file() else path


def load_encoder(path, *, step=None, average=None):
    """(model fields, params) of an encoder.

    Model fields are those of `mim_jax.models.ViT` as a dict (empty where the file does not state
    them); params are the ViT's, with projection/kernel [D,P] beside them where the file has one.
    step, average: of a work directory alone, see `work_directory.load_encoder`.
    """
    path = encoder_file(path)
    given = {'step': step, 'average': average}
    given = {name: value for name, value in given.items() if value is not None}
    if path.is_dir():
        model, params = work_directory.load_encoder(path, **given)
        return dataclasses.asdict(model), params
    if given:
        raise UserError(f'{path} is a weight file: only a work directory has steps and averages')
    params, metadata = native.load(path)
    return native.model_fields(metadata, what=path), params


def load_normalization(path, *, assumed=False):
    """{'mean': (...), 'std': (...)} of the images that an encoder was made for, where the path
    states them; with `assumed` its family's usual ones where it does not.
    """
    path = encoder_file(path)
    if path.is_dir():
        found = native.input_of(work_directory.section(path, 'data'), what=path)
        return {name: found[name] for name in ('mean', 'std') if name in found}
    return native.normalization(native.read_header(path)[1], assumed=assumed, what=path)


def load_image_size(path):
    """(height, width) of the images that an encoder was made for, None where the path does not
    state it.
    """
    path = encoder_file(path)
    if path.is_dir():
        stated = work_directory.section(path, 'data')
    else:
        metadata = native.read_header(path)[1]
        stated = {'image_size': native.stated(metadata, 'image_size', what=path)}
    return native.input_of(stated, what=path).get('image_size')


@dataclasses.dataclass(frozen=True, eq=False)
class Complete:
    """An encoder with all that is needed to run it.

    params: the ViT's, host arrays. projection: {'kernel': [D,P]} for its output, or None.
    mean, std: of its images in [0, 1], one number per channel. image_size: (height, width) in
    pixels that it was made for, None where nothing tells it.
    """

    model: ViT
    params: dict
    projection: dict | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None


def complete(
    path, *, what, option='{}', mean=None, std=None, model=None, step=None, average=None
) -> Complete:
    """The encoder at `path`, checked.

    mean, std: one number or one per channel; None: what the path states, or what is usual for the
    family of imported weights. model: ViT fields that replace or complete the stated. step,
    average: see `load_encoder`. In sentences the path is called `what`, and these options as the
    format `option` makes of their names.

    Raises UserError where there is no encoder, it states too little, or it does not fit.
    """
    path = storage.path(path)
    if not path.exists():
        raise UserError(f'{what}: there is no such file or directory; it names {KINDS}')
    check_directory(path, what=what)
    known = load_normalization(path, assumed=True)
    fields, params = load_encoder(path, step=step, average=average)
    params = dict(params)
    projection = params.pop('projection', None)
    fields.pop('attention_kernel', None)  # a choice of the device that it was trained on
    fields = {**fields, **(model or {})}
    if not fields:
        raise UserError(
            f'{what} does not state its model: give the fields of its ViT by '
            f'{option.format("model")}'
        )
    vit = native.model_of(fields, what=what)
    if not vit.mask_token:
        params.pop('mask_token', None)  # of a masked model's training; whole images have no mask
    channels = check_fits(params, vit, what=what)
    normalization = {
        name: _per_channel(
            known.get(name) if given is None else given,
            channels,
            what=what,
            name=name,
            option=option,
        )
        for name, given in (('mean', mean), ('std', std))
    }
    if min(normalization['std']) <= 0:
        name = option.format('std')
        raise UserError(f'{name}={normalization["std"]}: every number must be above 0')
    size = load_image_size(path) or _size_of_tables(params, vit)
    return Complete(vit, params, projection, channels, **normalization, image_size=size)


def check_directory(path, *, what):
    """Raises UserError, naming `what` it is, for a directory neither of an import nor of a run."""
    folder = encoder_file(path)
    if not folder.is_dir() or (folder / work_directory.CONFIG_FILE).exists():
        return
    raise UserError(
        f'{what} holds no encoder: there is neither encoder.safetensors, as in a directory of '
        f'`python -m mim_jax.weights import`, nor {work_directory.CONFIG_FILE}, as in a work '
        'directory'
    )


def check_fits(params, model, *, what) -> int:
    """The channels of the images of an encoder, whose `params` (without a projection) must have the
    names and shapes of `model`. Raises UserError, naming `what` they are of, where they have not.
    """
    kernel = params.get('patch_embed', {})
    kernel = kernel.get('kernel') if isinstance(kernel, dict) else None
    if kernel is None or not np.shape(kernel):
        raise UserError(f'{what} holds no image encoder: patch_embed/kernel is missing')
    (p, q), rows = model.patch_size, np.shape(kernel)[0]
    if rows % (p * q) or not rows:
        raise UserError(f'{what}: its patch_embed/kernel of {rows} rows is not of {p}x{q} patches')
    struct = jax.ShapeDtypeStruct((1, p, q, rows // (p * q)), jnp.float32)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), struct))['params']
    fitting.check_params(params, fitting.open_tables(expected, model), what=what)
    return rows // (p * q)


def _per_channel(values, channels, *, what, name, option):
    if values is None:
        raise UserError(
            f'{what} does not state the {name} of its images: give {option.format(name)}=…, one '
            'number or one per channel, for images in [0, 1]'
        )
    if isinstance(values, str):
        raise UserError(f'{option.format(name)}={values!r} must be numbers, one or one per channel')
    values = tuple(values) if hasattr(values, '__iter__') else (values,)
    if len(values) not in (1, channels):
        raise UserError(
            f'{option.format(name)} has {len(values)} numbers, but {what} sees {channels} channels'
        )
    return tuple(float(v) for v in values) * (channels // len(values))


def _size_of_tables(params, model):
    """(height, width) of the images for which a learned position table was made, or None."""
    table = params.get('position', {}).get('patches')
    grid = model.grid if table is None else table.shape[:2]
    return grid and tuple(n * p for n, p in zip(grid, model.patch_size, strict=True))
