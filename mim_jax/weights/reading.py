"""Weights of other projects from files: read whole, and never executed."""

import argparse
import dataclasses
import json
import pickle
import re
from pathlib import Path

import numpy as np

from mim_jax import storage
from mim_jax.errors import UserError
from mim_jax.weights import archives, native, torchscript

# In a folder, the first of these; else the only weights file.
FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'open_clip_model.safetensors',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
    'open_clip_pytorch_model.bin',
)
PYTORCH = ('.pt', '.pth', '.bin', '.ckpt')
# Where training programs keep the weights; the averaged network before the one that follows it.
WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'teacher', 'student', 'module')
TOKENIZER = ('tokenizer.json', 'vocab.json', 'merges.txt')


@dataclasses.dataclass(frozen=True)
class Foreign:
    """What a file or folder of another project holds.

    tensors: NumPy arrays by name, floating-point ones float32. config, preprocessor: the JSON
    files beside them, {} where absent. tokenizer: paths of a tokenizer's files.
    """

    tensors: dict[str, np.ndarray]
    config: dict = dataclasses.field(default_factory=dict)
    preprocessor: dict = dataclasses.field(default_factory=dict)
    tokenizer: tuple[Path, ...] = ()


def read(path) -> Foreign:
    """Reads a weights file, or a folder with one and with the configuration files beside it.

    Of a single file, the file alone is read: what lies beside it may belong to another. Raises
    UserError for what is missing, damaged, or holds more than tensors and plain values.
    """
    if storage.is_remote(path):
        raise UserError(f'{path}: files of other projects are read on this machine: copy it there')
    path = Path(path)
    if not path.is_dir():
        return Foreign(_tensors(path))
    config = _json(path / 'config.json') or _json(path / 'open_clip_config.json')
    return Foreign(
        tensors=_tensors(_weights_in(path)),
        config=config,
        preprocessor=_json(path / 'preprocessor_config.json'),
        tokenizer=tuple(path / name for name in TOKENIZER if (path / name).is_file()),
    )


def _weights_in(folder):
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    endings = ('.safetensors', *PYTORCH)
    found = sorted(p for p in folder.iterdir() if p.suffix in endings and p.is_file())
    if len(found) != 1:
        names = ', '.join(p.name for p in found) or f'no file ending in {", ".join(endings)}'
        raise UserError(f'{folder} should hold one weights file, and holds {names}: name the file')
    return found[0]


def _tensors(path):
    if path.name.endswith('.index.json'):
        return _sharded(path)
    if path.suffix in PYTORCH:
        return _pytorch(path)
    return native.read_tensors(path)[0]


def _sharded(index):
    """The tensors of all files that the index of a sharded checkpoint names."""
    names = _json(index).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise UserError(f'{index} does not say which file holds which weights (weight_map)')
    tensors = {}
    if not all(isinstance(file, str) for file in names.values()):
        raise UserError(f'{index}: its weight_map does not give a file for each name')
    for file in sorted(set(names.values())):
        if Path(file).name != file or file.endswith('.json'):
            raise UserError(f'{index} names {file}, which is not a weights file beside it')
        tensors.update(_tensors(index.parent / file))
    absent = [name for name in names if name not in tensors]
    if absent:
        raise UserError(f'{index}: its files lack {native.some(absent)}')
    return tensors


def _json(path):
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as JSON ({error})') from error
    if not isinstance(value, dict):
        raise UserError(f'{path} does not hold a JSON object')
    return value


def _pytorch(path):
    """The tensors of a PyTorch file: no code in it is executed. All but TorchScript need PyTorch,
    and are read with its `weights_only`.
    """
    if not path.is_file():
        raise UserError(f'weights file {path} does not exist')
    archives.check(path)
    if torchscript.is_archive(path):
        return torchscript.read(path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f'{path} is a PyTorch file, and PyTorch is not installed: `pip install torch`, or '
            'take a safetensors file'
        ) from None
    try:
        # MAE's and DINO's files hold their command line, a class without any code of its own.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file makes many kinds
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise UserError(
                f'{path} is refused: beside tensors and plain values it holds {found[1]}, which '
                'could execute code'
            ) from error
        raise UserError(
            f'{path} cannot be read as a PyTorch file of tensors: it is damaged, or of another kind'
        ) from error
    tensors = _unwrapped(loaded, torch.Tensor, path)
    try:
        return {name: _as_numpy(t) for name, t in tensors.items()}
    except Exception as error:  # sparse ones, quantised ones, and what comes next
        raise UserError(f'{path} holds tensors that are no plain arrays ({error})') from error


def _unwrapped(loaded, kind, path):
    """The dict of tensors inside what training programs save around it."""
    while isinstance(loaded, dict):
        tensors = {n: t for n, t in loaded.items() if isinstance(t, kind) and isinstance(n, str)}
        inner = [loaded[n] for n in WRAPPERS if isinstance(loaded.get(n), dict)]
        if inner and len(tensors) < 2:
            loaded = inner[0]
        elif tensors:
            return tensors
        else:
            break
    raise UserError(f'{path} holds no tensors by name, nor under any of {", ".join(WRAPPERS)}')


def _as_numpy(tensor):
    tensor = tensor.detach()
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f'a shape of {list(tensor.shape)} is more than the file holds')
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
