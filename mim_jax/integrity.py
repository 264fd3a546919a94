"""Checksums of checkpoints, so that damage is noticed and not trained on."""

import hashlib
import json
from pathlib import Path

from absl import logging

from mim_jax import storage

FILE = 'checksums.json'
# An object store knows a checksum of every object: it is not read for another.
STORE = 'crc32c:'
# Orbax writes it last of all that is a checkpoint's own.
WHOLE = '_CHECKPOINT_METADATA'


def seal(folder: Path) -> None:
    """Writes sizes and digests of all files of a checkpoint into it. Where that is not possible (it
    was removed meanwhile, the disk is full) it stays without, and a warning says so.
    """
    try:
        found = {
            name: (size, _digest(folder / name) if kept is None else f'{STORE}{kept}')
            for name, (size, kept) in _files(folder).items()
        }
        storage.write_whole(folder / FILE, json.dumps(found, indent=1) + '\n')
    except OSError as error:
        if folder.exists():
            logging.warning('%s: no checksums could be written (%s).', folder, error.strerror)


def damage(folder: Path, *, digests: bool = True) -> str | None:
    """What is wrong with a checkpoint, a phrase; None where nothing is found.

    One without checksums (its run was killed before they were written) is taken for whole if its
    parts are there. digests: read all of it, too; otherwise only sizes are compared.

    Raises OSError, or what else opens a URL raises, where an object store cannot be reached.
    """
    try:
        return _damage(folder, digests)
    except OSError as error:
        if storage.is_remote(folder):  # that is the way to it
            raise
        return f'it cannot be read ({error.strerror})'


def _damage(folder: Path, digests: bool) -> str | None:
    if not (folder / WHOLE).exists():
        return f'{WHOLE} is missing'
    try:
        stated = json.loads((folder / FILE).read_text(encoding='utf-8'))
        stated = {name: (size, digest) for name, (size, digest) in stated.items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f'{FILE} cannot be read'
    files = _files(folder)
    absent = sorted(set(stated) - set(files))
    if absent:
        return f'{absent[0]} is missing'
    for name, (size, digest) in stated.items():
        found, kept = files[name]
        if found != size:
            return f'{name} has {found} bytes and not {size}'
        if not digests:
            continue
        if digest.startswith(STORE):
            # A copy on a file system has lost what the store knew.
            same = kept is None or digest == f'{STORE}{kept}'
        else:
            same = _digest(folder / name) == digest
        if not same:
            return f'{name} has other contents than were written'
    return None


def _files(folder: Path) -> dict[str, tuple[int, str | None]]:
    """`storage.files` without that of this module."""
    found = storage.files(folder)
    return {name: known for name, known in found.items() if not name.startswith(FILE)}


def _digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
