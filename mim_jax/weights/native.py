"""Our own weight files: safetensors whose names are parameter paths joined with '/'."""

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mim_jax.errors import UserError
from mim_jax.folders import check_folder
from mim_jax.models.vit import ViT

FORMAT = 'mim_jax'
LISTED = 5  # names in an error message


def save(path, params, *, metadata=None, dtype='float32'):
    """Writes nested `params` to `path`, whole or not at all (a temporary file, then a rename).

    Floating-point arrays are stored in `dtype` ('float32' or 'float16'); `metadata` maps str to
    str. Raises UserError where a value does not fit float16.
    """
    tensors = {name: narrowed(name, value, dtype) for name, value in flatten(params).items()}
    data = safetensors.numpy.save(tensors, metadata={'format': FORMAT, **(metadata or {})})
    write_whole(path, data)


def narrowed(name, value, dtype):
    """A floating-point array in `dtype`, another as it is; contiguous NumPy.

    Raises UserError where a value does not fit float16.
    """
    array = np.asarray(value)
    if jax.dtypes.issubdtype(array.dtype, np.floating):
        wide = array.astype(np.float32)
        with np.errstate(over='ignore'):
            array = wide.astype(dtype)
        if dtype == 'float16' and not np.array_equal(np.isfinite(wide), np.isfinite(array)):
            raise UserError(f'{name} has values beyond float16: export with --dtype=float32')
    return np.ascontiguousarray(array)


def write_whole(path, data):
    """Writes bytes to `path`; a reader sees the old file or the new one, never a part.

    Raises UserError where `path` is a directory, or cannot be in one.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{path} is a directory: name a file')
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_header(path):
    """({name: (dtype name, shape)}, metadata) of a safetensors file, without reading the tensors.

    Raises UserError for a missing or unreadable file.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
        tensors = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
        return tensors, file.metadata() or {}


def read_tensors(path):
    """All tensors of a safetensors file as NumPy arrays by name, and its metadata (str to str).

    float16 and bfloat16 become float32. Raises UserError for a missing or unreadable file.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    tensors = safetensors.numpy.load_file(path)
    return {name: _widened(array) for name, array in tensors.items()}, metadata


def _opened(path):
    path = Path(path)
    if not path.is_file():
        what = 'is a directory, not a file' if path.is_dir() else 'does not exist'
        raise UserError(f'weights file {path} {what}')
    try:
        # Opening checks the header, and that the file is as long as the header says.
        return safetensors.safe_open(path, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f'weights file {path} cannot be read as safetensors ({error}): '
            'it is truncated or of another format'
        ) from error


def _widened(array):
    small = jax.dtypes.issubdtype(array.dtype, np.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if small else array


def load(path):
    """(params, metadata) of a file that `save` wrote; arrays are float32 NumPy.

    Raises UserError for a missing, truncated or foreign file.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get('format') != FORMAT:
        names = ', '.join(sorted(tensors)[:LISTED])
        raise UserError(
            f'weights file {path} is not in mim_jax naming (its metadata lacks format={FORMAT}; '
            f'it holds {names}, …): a file of `python -m mim_jax.weights` is expected'
        )
    return unflatten(tensors), metadata


def normalization(metadata, *, assumed=False):
    """{'mean': (...), 'std': (...)} of the images that a file's encoder was made for, as far as its
    metadata state them; with `assumed` its family's usual ones where they do not.
    """
    found = {}
    for name in ('mean', 'std'):
        text = metadata.get(name) or (assumed and metadata.get(f'assumed_{name}'))
        if text:
            found[name] = tuple(json.loads(text))
    return found


def normalization_metadata(values, *, assumed=()):
    """Metadata for `save` of {'mean': (...), 'std': (...)}, either of which may be None or left
    out; the names in `assumed` are only the family's usual ones.
    """
    return {
        f'assumed_{name}' if name in assumed else name: json.dumps(value)
        for name, value in values.items()
        if value is not None
    }


def encoder_metadata(model, **extra):
    """Metadata for `save` that `encoders.load_encoder` reads back: of a ViT, and `extra` texts."""
    return {'model': json.dumps(dataclasses.asdict(model)), **extra}


def model_of(fields, *, what):
    """The ViT of model fields as `encoders.load_encoder` gives them, lists for tuples.

    Raises UserError, naming `what` states them, for fields that make none.
    """
    try:
        return ViT(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f'{what}: its model fields do not make a ViT: {error}') from None


def flatten(params):
    """Nested dicts as one dict with names joined by '/'."""
    return traverse_util.flatten_dict(params, sep='/')


def unflatten(tensors):
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep='/')


def some(names):
    """The first few of `names`, and how many more there are."""
    more = len(names) - LISTED
    return ', '.join(names[:LISTED]) + (f' and {more} more' if more > 0 else '')
