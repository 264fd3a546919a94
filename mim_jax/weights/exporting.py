"""Export: an encoder of ours, where from, in which form, and how its files are written."""

import dataclasses
import json

import numpy as np
import safetensors.numpy

from mim_jax import storage, work_directory
from mim_jax.errors import UserError
from mim_jax.folders import new_folder
from mim_jax.models.positions import sincos_table
from mim_jax.models.vit import ViT
from mim_jax.weights import encoders, mapping, native


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder with what others want to know of its input.

    params: the ViT's, with projection/kernel [D,P] beside them or not. image_size: (height, width)
    that position tables belong to, None where nothing tells. mean, std: None where unknown;
    assumed: which of them nothing states, so that they are the family's usual ones.
    """

    model: ViT
    params: dict
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    assumed: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        rows = np.shape(self.params['patch_embed']['kernel'])[0]
        return rows // (self.model.patch_size[0] * self.model.patch_size[1])

    @property
    def projection(self) -> int | None:
        kernel = self.params.get('projection')
        return None if kernel is None else np.shape(kernel['kernel'])[1]


def of_run(workdir, *, step=None) -> Encoder:
    """The encoder of a run's checkpoint, that of `step` or the newest. Raises UserError where there
    is none.
    """
    if not storage.path(workdir).is_dir():
        raise UserError(f'--workdir={workdir}: there is no such directory')
    model, params = work_directory.load_encoder(workdir, step=step)
    known = native.input_of(work_directory.section(workdir, 'data'), what=workdir)
    return _checked(Encoder(model, params, **known), what=workdir)


def of_file(path) -> Encoder:
    """The encoder in a file of ours, or in a folder that `import` made."""
    params, metadata = native.load(encoders.encoder_file(path))
    if 'model' not in metadata:
        raise UserError(f'{path} does not state its model, so it cannot be written for others')
    model = native.model_of(native.model_fields(metadata, what=path), what=path)
    stated = native.normalization(metadata, what=path)
    known = native.normalization(metadata, what=path, assumed=True)
    assumed = tuple(name for name in known if name not in stated)
    size = encoders.load_image_size(path)
    return _checked(Encoder(model, params, size, **known, assumed=assumed), what=path)


def _checked(encoder, *, what) -> Encoder:
    """The encoder. Raises UserError where its parameters are not those of its model."""
    params = dict(encoder.params)
    projection = params.pop('projection', None)
    if not encoder.model.mask_token:
        params.pop('mask_token', None)  # of a masked model's training
    channels = encoders.check_fits(params, encoder.model, what=what)
    kernel = projection.get('kernel') if isinstance(projection, dict) else None
    if projection is not None and np.shape(kernel)[:-1] != (encoder.model.width,):
        raise UserError(f'{what}: projection/kernel is no kernel of {encoder.model.width} rows')
    for name in ('mean', 'std'):
        values = getattr(encoder, name)
        if values is not None and len(values) != channels:
            raise UserError(f'{what}: {name} has {len(values)} numbers for {channels} channels')
    native.check_numbers(native.flatten(encoder.params), what=what)
    return encoder


def to_mim_jax(encoder, out, *, dtype='float32'):
    """Writes the file `out` in our own naming."""
    normalization = native.normalization_metadata(
        {'mean': encoder.mean, 'std': encoder.std}, assumed=encoder.assumed
    )
    size = {'image_size': json.dumps(encoder.image_size)} if encoder.image_size else {}
    metadata = native.encoder_metadata(encoder.model, **size, **normalization)
    native.save(out, encoder.params, metadata=metadata, dtype=dtype)


def refuse_unless(limits, *, whose):
    """Raises UserError naming what `whose` classes ask for, of (whether it holds, what) pairs."""
    asked = [text for holds, text in limits if not holds]
    if asked:
        raise UserError(f'{whose} cannot hold this encoder: it asks for {"; ".join(asked)}')


def sized(encoder, image_size) -> Encoder:
    """The encoder for images of (height, width) pixels, as `--image_size` gives them.

    Raises UserError where they are not whole patches, or the encoder's tables are of another size.
    """
    (height, width), (p, q) = image_size, encoder.model.patch_size
    flag = f'--image_size={height},{width}'
    if height % p or width % q:
        raise UserError(f'{flag} is not a whole number of {p}x{q} patches')
    grid = _grid_of_tables(encoder)
    if grid and grid != (height // p, width // q):
        raise UserError(
            f'{flag}: the position table of this encoder is for images of {grid[0] * p},'
            f'{grid[1] * q}, and is exported as it is; leave --image_size out'
        )
    return dataclasses.replace(encoder, image_size=(height, width))


def located(encoder) -> Encoder:
    """The encoder with its grid and image size, from its tables or the size of its images."""
    model = encoder.model
    p, q = model.patch_size
    grid = _grid_of_tables(encoder)
    if not grid and encoder.image_size:
        grid = encoder.image_size[0] // p, encoder.image_size[1] // q
    grid = grid or model.grid
    if not grid:
        raise UserError(
            'the encoder does not say which image size it is for: give --image_size=SIDE or '
            '--image_size=HEIGHT,WIDTH'
        )
    return dataclasses.replace(
        encoder,
        model=dataclasses.replace(model, grid=tuple(grid)),
        image_size=(grid[0] * p, grid[1] * q),
    )


def _grid_of_tables(encoder):
    """(rows, columns) that the position tables were made for, None where there are none."""
    params = native.flatten(encoder.params)
    if 'position/patches' in params:
        return tuple(params['position/patches'].shape[:2])
    if encoder.model.relative_position in ('shared', 'both'):
        offsets = params['relative_position/patches'].shape[:2]
    elif encoder.model.relative_position == 'per_block':
        offsets = params['blocks/relative_position/patches'].shape[1:3]
    else:
        return None
    return tuple((n + 1) // 2 for n in offsets)


def left_out(encoder, rules) -> list[str]:
    """Names of the encoder's parameters that `rules` do not write."""
    written = {name for rule in rules for name in rule.ours}
    return [name for name in native.flatten(encoder.params) if name not in written]


def adapted(model, params, *, biases, position, patch_bias, mask_token):
    """(ViT, params) of the same function in another form.

    biases: 'all', 'qv' or 'none' as `qkv_bias`; a key bias adds the same to all logits of a query,
    so that it may be dropped. position 'learned' writes a fixed table, or zeros, as a learned one.
    """
    flat = {name: np.asarray(value) for name, value in native.flatten(params).items()}
    kernel = flat['blocks/attention/qkv/kernel']
    if biases != 'none':
        rows = flat.get('blocks/attention/qkv/bias')
        if rows is None:
            rows = np.zeros((len(kernel), 2, *kernel.shape[3:]), kernel.dtype)
        first, last = rows[:, :1], rows[:, -1:]
        middle = rows[:, 1:2] if rows.shape[1] == 3 else np.zeros_like(first)
        parts = [first, middle, last] if biases == 'all' else [first, last]
        flat['blocks/attention/qkv/bias'] = np.concatenate(parts, axis=1)
    if position == 'learned':
        if model.position == 'sincos':
            flat['position/patches'] = sincos_table(model.grid, model.width)
        elif model.position == 'none':
            flat['position/patches'] = np.zeros((*model.grid, model.width), np.float32)
        if model.class_token and 'position/class_token' not in flat:
            flat['position/class_token'] = np.zeros((model.width,), np.float32)
    if patch_bias and not model.patch_bias:
        flat['patch_embed/bias'] = np.zeros((model.width,), np.float32)
    if not mask_token:
        flat.pop('mask_token', None)
    elif not model.mask_token:
        flat['mask_token'] = np.zeros((model.width,), np.float32)
    model = dataclasses.replace(
        model, qkv_bias=biases, position=position, patch_bias=patch_bias, mask_token=mask_token
    )
    return model, native.unflatten(flat)


def write_folder(out, params, *, rules, files, dtype):
    """Writes the new folder `out`: model.safetensors under the names of `rules`, and JSON files."""
    depth = len(params['blocks']['norm1']['scale'])
    tensors = mapping.write(params, rules, depth=depth)
    tensors = {name: native.narrowed(name, array, dtype) for name, array in tensors.items()}
    with new_folder(out) as folder:
        data = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
        native.write_whole(folder / 'model.safetensors', data)
        for name, content in files.items():
            text = json.dumps(content, indent=2) + '\n'
            (folder / name).write_text(text, encoding='utf-8')
