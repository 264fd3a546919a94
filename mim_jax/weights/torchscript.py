"""TorchScript archives, such as OpenAI's own CLIP files, read without PyTorch and without running.

An archive is a zip of NAME/data.pkl, a pickle of the tree of modules, and of NAME/data/KEY, the
values of a storage in little-endian order. Its program, NAME/code/, is never opened. The pickle is
read into stand-ins that only hold what they are given; arrays are made afterwards.
Source: the archives that `torch.jit.save` of PyTorch 2.13 writes.
"""

import io
import math
import pickle
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError

STORAGES = {
    'BFloat16Storage': np.dtype(jnp.bfloat16),
    'HalfStorage': np.dtype('<f2'),
    'FloatStorage': np.dtype('<f4'),
    'DoubleStorage': np.dtype('<f8'),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}
# Functions that say what their first argument is; that argument is taken as it is.
LABELS = {
    'torch.device',
    'torch._utils._rebuild_parameter',
    'torch.jit._pickle.restore_type_tag',
    *(f'torch.jit._pickle.build_{kind}list' for kind in ('int', 'double', 'bool', 'tensor')),
}


def is_archive(path) -> bool:
    """Whether a file is a zip that has a TorchScript program in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any('/code/' in name for name in archive.namelist())
    except Exception:  # a damaged directory makes many kinds
        return False


def read(path) -> dict[str, np.ndarray]:
    """The tensors of the modules by dotted name, floating-point ones float32; read-only views.

    Attributes that are no tensors are left out. Raises UserError for an archive that is damaged, or
    whose pickle holds more than modules, tensors and plain values: nothing in it is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes many kinds
        raise UserError(
            f'{path} cannot be read as a TorchScript archive: it is damaged, or of another kind'
        ) from error


def _read(archive, path):
    roots = [name for name in archive.namelist() if name.split('/')[1:] == ['data.pkl']]
    if len(roots) != 1:
        raise UserError(f'{path} is a TorchScript archive without its data.pkl: it is damaged')
    module = _Unpickler(archive.read(roots[0]), path).load()
    folder = roots[0].removesuffix('.pkl')
    storages, tensors = {}, {}
    for name, tensor in _named(module):
        if tensor.storage not in storages:
            storages[tensor.storage] = _values(archive, folder, tensor.storage)
        tensors[name] = _view(tensor, storages[tensor.storage], what=f'{path}: {name}')
    if not tensors:
        raise UserError(f'{path} is a TorchScript archive whose modules hold no tensors')
    return tensors


class _Module:
    """What unpickling makes of any class of the program: an object that holds attributes."""


class _Storage(NamedTuple):
    kind: str  # of STORAGES
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Unpickler(pickle.Unpickler):
    def __init__(self, data, path):
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module, name):
        # Classes and functions are made anew each time: a pickle can set attributes on them.
        full = f'{module}.{name}'
        if full.startswith('__torch__.'):
            return type('Module', (_Module,), {})
        if module == 'torch' and name in STORAGES:
            return name
        if full == 'torch._utils._rebuild_tensor_v2':
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if full in LABELS:
            return lambda value, *_: value
        if full == 'collections.OrderedDict':
            return dict
        raise UserError(
            f'{self.path} is refused: beside tensors and plain values it holds {full}, which '
            'could execute code'
        )

    def persistent_load(self, pid):
        _, kind, key, *_ = pid
        return _Storage(kind, key)


def _named(module, prefix=''):
    """(dotted name, _Tensor) of a module and those inside."""
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _named(value, f'{prefix}{name}.')
        elif isinstance(value, _Tensor):
            yield prefix + name, value


def _values(archive, folder, storage):
    """All values of a storage, one axis; converted here, so that views of it stay views."""
    dtype = STORAGES[storage.kind]
    data = archive.read(f'{folder}/{storage.key}')
    values = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
    floating = jax.dtypes.issubdtype(dtype, np.floating)
    return values.astype(np.float32, copy=False) if floating else values


def _view(tensor, values, *, what):
    _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if (
        math.prod(shape) > len(values)
        or min(offset, *shape, *strides, 0) < 0
        or (all(shape) and last >= len(values))
    ):
        raise UserError(f'{what} reaches beyond its storage of {len(values)} values: damaged')
    strides = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, strides, writeable=False)
