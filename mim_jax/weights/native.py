"""Our own weight files: safetensors whose names are parameter paths joined with '/'."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import types

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mim_jax import config, kinds, storage
from mim_jax.errors import UserError
from mim_jax.folders import check_folder
from mim_jax.models.vit import ViT
from mim_jax.ranges import AnyNumber, Positive, Side

FORMAT = 'mim_jax'
LISTED = 5  # names in an error message


def save(path, params, *, metadata=None, dtype='float32'):
    """Writes nested `params` to `path`, whole or not at all (a temporary file, then a rename).

    Floating-point arrays are stored in `dtype` ('float32' or 'float16'); `metadata` maps str to
    str, and gets a digest of the tensors, which `load` compares. An existing file is replaced only
    if it is one of these.

    Raises UserError where a value is not finite or does not fit float16, or another file is there.
    """
    _refuse_foreign(path)
    tensors = {name: narrowed(name, value, dtype) for name, value in flatten(params).items()}
    check_numbers(tensors, what='the weights to be written')
    metadata = {'format': FORMAT, **(metadata or {}), 'digest': digest(tensors)}
    write_whole(path, safetensors.numpy.save(tensors, metadata=metadata))


def digest(tensors):
    """A text that tells arrays by name apart: by names, dtypes, shapes and every byte."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def check_numbers(tensors, *, what):
    """Raises UserError for an array by name that is not of floating point, has NaN or infinity."""
    for name, array in tensors.items():
        array = np.asarray(array)
        if not jax.dtypes.issubdtype(array.dtype, np.floating):
            raise UserError(f'{what}: {name} is of {array.dtype}, and weights are floating-point')
        if not np.isfinite(array).all():
            raise UserError(
                f'{what}: {name} has values that are not finite: the training that made it went '
                'wrong, or the file is damaged'
            )


def _refuse_foreign(path):
    if not storage.path(path).is_file():
        return
    try:
        ours = read_header(path)[1].get('format') == FORMAT
    except UserError:
        ours = False
    if not ours:
        raise UserError(
            f'{path} exists already and is no weight file of mim_jax: name another file, or remove '
            'this one'
        )


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
    path = storage.path(path)
    if path.is_dir():
        raise UserError(f'{path} is a directory: name a file')
    if storage.is_remote(path):
        path.write_bytes(data)
        return
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
    tensors, metadata = _read(path)
    return {name: _widened(array) for name, array in tensors.items()}, metadata


def _read(path):
    with _opened(path) as file:
        metadata = file.metadata() or {}
    try:
        return safetensors.numpy.load_file(storage.fetched(storage.path(path))), metadata
    except Exception as error:  # kinds of numbers that NumPy lacks
        raise UserError(f'weights file {path} cannot be read as arrays ({error})') from error


def _opened(path):
    path = storage.path(path)
    if not path.is_file():
        what = 'is a directory, not a file' if path.is_dir() else 'does not exist'
        raise UserError(f'weights file {path} {what}')
    try:
        # Opening checks the header, and that the file is as long as the header says.
        return safetensors.safe_open(storage.fetched(path), framework='numpy')
    except Exception as error:  # the library's own, and of names that are no UTF-8
        raise UserError(
            f'weights file {path} cannot be read as safetensors ({error}): '
            'it is truncated or of another format'
        ) from error


def _widened(array):
    small = jax.dtypes.issubdtype(array.dtype, np.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if small else array


def load(path):
    """(params, metadata) of a file that `save` wrote; arrays are float32 NumPy.

    Raises UserError for a missing, truncated, damaged or foreign file, and for values that are not
    finite.
    """
    tensors, metadata = _read(path)
    if metadata.get('format') != FORMAT:
        names = ', '.join(sorted(tensors)[:LISTED])
        raise UserError(
            f'weights file {path} is not in mim_jax naming (its metadata lacks format={FORMAT}; '
            f'it holds {names}, …): a file of `python -m mim_jax.weights` is expected'
        )
    if 'digest' in metadata and metadata['digest'] != digest(tensors):
        raise UserError(
            f'weights file {path} is damaged: its tensors are not those that were written; bring '
            'another copy, or export it again'
        )
    check_numbers(tensors, what=f'weights file {path}')
    tensors = {name: _widened(array) for name, array in tensors.items()}
    both = [name for name in tensors if any(other.startswith(f'{name}/') for other in tensors)]
    if both:
        raise UserError(f'weights file {path}: {both[0]} is an array and has others inside')
    return unflatten(tensors), metadata


INPUT = {
    'image_size': tuple[Side, ...],
    'mean': tuple[AnyNumber, ...],
    'std': tuple[Positive, ...],
}


def stated(metadata, name, *, what):
    """What the metadata (str to str) of a file state as JSON, None where they do not.

    Raises UserError, naming `what` they are of, for what is no JSON.
    """
    if name not in metadata:
        return None
    try:
        return json.loads(metadata[name])
    except (ValueError, RecursionError):
        text = kinds.shown(metadata[name])
        raise UserError(f'{what}: {name} = {text} in its metadata is no JSON') from None


def model_fields(metadata, *, what) -> dict:
    """The fields of a ViT that the metadata of a file state, {} where they do not."""
    fields = stated(metadata, 'model', what=what)
    if not isinstance(fields, dict | types.NoneType):
        raise UserError(f'{what}: model = {kinds.shown(fields)} in its metadata holds no fields')
    return fields or {}


def input_of(values, *, what):
    """Those of INPUT that `values` has, in their kinds, image_size as (height, width); `what`
    states them. Raises UserError for one that cannot be.
    """
    found = {
        name: kinds.checked(values[name], kind, f'{what}: {name}')
        for name, kind in INPUT.items()
        if values.get(name) is not None
    }
    if len(found.get('image_size', (1, 1))) != 2:
        raise UserError(f'{what}: image_size = {found["image_size"]} is not (height, width)')
    return found


def normalization(metadata, *, what, assumed=False):
    """{'mean': (...), 'std': (...)} of the images that a file's encoder was made for, as far as its
    metadata state them; with `assumed` its family's usual ones where they do not.
    """
    found = {}
    for name in ('mean', 'std'):
        value = stated(metadata, name, what=what)
        if value is None and assumed:
            value = stated(metadata, f'assumed_{name}', what=what)
        found[name] = value
    return input_of(found, what=what)


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
    return built(ViT, fields, what=what)


def built(kind, fields, *, what):
    """The dataclass `kind` of fields as `what` states them. Raises UserError for wrong ones."""
    try:
        return config.build(kind, fields, path='model')
    except UserError as error:
        raise UserError(
            f'{what}: its model fields do not make a {kind.__name__}: {error}'
        ) from None


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
