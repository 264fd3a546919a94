"""Export: an encoder of ours, where from, in which form, and how its files are written."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from mim_jax.errors import UserError
from mim_jax.models.positions import sincos_table
from mim_jax.models.vit import ViT
from mim_jax.weights import mapping, native
from mim_jax.weights.folders import new_folder


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder with what others want to know of its input.

    params: the ViT's, with projection/kernel [D,P] beside them or not. image_size: (height, width)
    that position tables belong to, None where nothing tells. mean, std: None where unknown.
    """

    model: ViT
    params: dict
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def channels(self) -> int:
        rows = np.shape(self.params['patch_embed']['kernel'])[0]
        return rows // (self.model.patch_size[0] * self.model.patch_size[1])

    @property
    def projection(self) -> int | None:
        kernel = self.params.get('projection')
        return None if kernel is None else np.shape(kernel['kernel'])[1]


def of_run(workdir) -> Encoder:
    """The encoder of the newest checkpoint of a run. Raises UserError where there is none."""
    from mim_jax import work_directory  # heavy: the whole program

    if not Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir}: there is no such directory')
    model, params = work_directory.load_encoder(workdir)
    data = work_directory.read_config(workdir).data
    return Encoder(model, params, tuple(data.image_size), tuple(data.mean), tuple(data.std))


def of_file(path) -> Encoder:
    """The encoder in a file of ours, or in a folder that `import` made."""
    params, metadata = native.load(native.encoder_file(path))
    if 'model' not in metadata:
        raise UserError(f'{path} does not state its model, so it cannot be written for others')
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(metadata['model']).items()
    }
    mean, std = (
        tuple(json.loads(metadata[name])) if name in metadata else None for name in ('mean', 'std')
    )
    return Encoder(ViT(**fields), params, mean=mean, std=std)


def to_mim_jax(encoder, out, *, dtype='float32'):
    """Writes the file `out` in our own naming."""
    extra = {
        name: json.dumps(value)
        for name, value in (('mean', encoder.mean), ('std', encoder.std))
        if value is not None
    }
    metadata = native.encoder_metadata(encoder.model, **extra)
    native.save(out, encoder.params, metadata=metadata, dtype=dtype)


def refuse_unless(limits, *, whose):
    """Raises UserError naming what `whose` classes ask for, of (whether it holds, what) pairs."""
    asked = [text for holds, text in limits if not holds]
    if asked:
        raise UserError(f'{whose} cannot hold this encoder: it asks for {"; ".join(asked)}')


def located(encoder) -> Encoder:
    """The encoder with its grid and image size, from its tables or the size of its images."""
    model, params = encoder.model, native.flatten(encoder.params)
    p, q = model.patch_size
    if 'position/patches' in params:
        grid = params['position/patches'].shape[:2]
    elif model.relative_position in ('shared', 'both'):
        grid = tuple((n + 1) // 2 for n in params['relative_position/patches'].shape[:2])
    elif model.relative_position == 'per_block':
        grid = tuple((n + 1) // 2 for n in params['blocks/relative_position/patches'].shape[1:3])
    elif encoder.image_size:
        grid = encoder.image_size[0] // p, encoder.image_size[1] // q
    elif model.grid:
        grid = tuple(model.grid)
    else:
        raise UserError(
            'the encoder does not say which image size it is for: give --image_size=SIDE or '
            '--image_size=HEIGHT,WIDTH'
        )
    return dataclasses.replace(
        encoder,
        model=dataclasses.replace(model, grid=grid),
        image_size=(grid[0] * p, grid[1] * q),
    )


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
