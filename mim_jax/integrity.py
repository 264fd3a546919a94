"""Checksums of checkpoints, so that damage is noticed and not trained on."""

import hashlib
import json
import os
from pathlib import Path

from absl import logging

FILE = 'checksums.json'
# Orbax writes it last of all that is a checkpoint's own.
WHOLE = '_CHECKPOINT_METADATA'


def seal(folder: Path) -> None:
    """Writes sizes and digests of all files of a checkpoint into it. Where that is not possible (it
    was removed meanwhile, the disk is full) it stays without, and a warning says so.
    """
    try:
        found = {name: _described(folder / name) for name in _names(folder)}
        temporary = folder / f'{FILE}.tmp'
        temporary.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
        os.replace(temporary, folder / FILE)
    except OSError as error:
        if folder.exists():
            logging.warning('%s: no checksums could be written (%s).', folder, error.strerror)


def damage(folder: Path, *, digests: bool = True) -> str | None:
    """What is wrong with a checkpoint, a phrase; None where nothing is found.

    One without checksums (its run was killed before they were written) is taken for whole if its
    parts are there. digests: read all of it, too; otherwise only sizes are compared.
    """
    try:
        return _damage(folder, digests)
    except OSError as error:
        return f'it cannot be read ({error.strerror})'


def _damage(folder: Path, digests: bool) -> str | None:
    if not (folder / WHOLE).is_file():
        return f'{WHOLE} is missing'
    try:
        stated = json.loads((folder / FILE).read_text(encoding='utf-8'))
        stated = {name: (size, digest) for name, (size, digest) in stated.items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f'{FILE} cannot be read'
    absent = sorted(set(stated) - set(_names(folder)))
    if absent:
        return f'{absent[0]} is missing'
    for name, (size, digest) in stated.items():
        path = folder / name
        if path.stat().st_size != size:
            return f'{name} has {path.stat().st_size} bytes and not {size}'
        if digests and _digest(path) != digest:
            return f'{name} has other contents than were written'
    return None


def _names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob('*') if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith(FILE))


def _described(path: Path) -> tuple[int, str]:
    return path.stat().st_size, _digest(path)


def _digest(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
