"""Fingerprints of weights and data: whether what a run began with, or learns from, is the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mim_jax import storage
from mim_jax.errors import UserError
from mim_jax.weights import native

FILE = 'fingerprints.json'


def of(params: Any) -> str:
    """A text that tells nested host arrays apart: by names, shapes, dtypes and every number.

    It is that of the numbers, not of a file: a teacher that moved, or lies in another format, is
    the same.
    """
    digest = hashlib.sha256()
    for name, value in sorted(native.flatten(params).items()):
        array = np.ascontiguousarray(value)
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def record(workdir: str | Path, found: dict[str, str]) -> None:
    """Writes the fingerprints of a fresh run, by name, into its work directory."""
    if jax.process_index() == 0:
        path = storage.path(workdir) / FILE
        storage.write_whole(path, json.dumps(found, indent=2) + '\n')


def recorded(workdir: str | Path) -> dict[str, str]:
    """Those in a work directory, by name; none where an older version started the run.

    Raises UserError where they cannot be read.
    """
    path = storage.path(workdir) / FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')).items())
    except (AttributeError, ValueError, RecursionError):
        raise UserError(f'{path} cannot be read; the work directory is damaged.') from None


def check(workdir: str | Path, found: dict[str, str]) -> None:
    """Raises UserError where one of the fingerprints is not that which the run recorded.

    Names that one side lacks are not compared: a resumed run does not read what it began with, and
    one of an older version recorded nothing.
    """
    before = recorded(workdir)
    changed = [name for name in found if before.get(name, found[name]) != found[name]]
    if changed:
        hint = ''
        if 'data' in changed:
            hint = (
                ' (of a plain folder of classes, data.eval_split and data.source.holdout say which '
                'images are trained on)'
            )
        words = ['training data' if n == 'data' else f'weights of the {n}' for n in changed]
        raise UserError(
            f'--workdir={workdir}: the {" and the ".join(words)} are not those with which this run '
            f'was started{hint}; bring these back, or choose another work directory.'
        )
