"""An encoder by its path: a file of ours, a folder that `import` made, or a work directory."""

import dataclasses
import json
from pathlib import Path

from mim_jax import work_directory
from mim_jax.weights import native


def encoder_file(path):
    """The encoder's file in a folder that `import` made; any other path as it is."""
    file = Path(path) / 'encoder.safetensors'
    return file if file.is_file() else Path(path)


def load_encoder(path):
    """(model fields, params) of an encoder.

    Model fields are those of `mim_jax.models.ViT` as a dict (empty where the file does not state
    them); params are the ViT's, with projection/kernel [D,P] beside them where the file has one.
    """
    path = encoder_file(path)
    if path.is_dir():
        model, params = work_directory.load_encoder(path)
        return dataclasses.asdict(model), params
    params, metadata = native.load(path)
    return json.loads(metadata.get('model', '{}')), params


def load_normalization(path, *, assumed=False):
    """{'mean': (...), 'std': (...)} of the images that an encoder was made for, where the path
    states them; with `assumed` its family's usual ones where it does not.
    """
    path = encoder_file(path)
    if path.is_dir():
        data = work_directory.section(path, 'data')
        return {name: tuple(data[name]) for name in ('mean', 'std')}
    return native.normalization(native.read_header(path)[1], assumed=assumed)
