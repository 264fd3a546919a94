"""Folders for files: whether they can be made, and one that appears whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from mim_jax import storage
from mim_jax.errors import UserError


def check_folder(path):
    """Raises UserError where `path` neither is a directory to write in nor can become one."""
    storage.check_local(path)
    path = Path(path)
    found = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not found.is_dir():
        raise UserError(f'nothing can be written in {path}: {found} is not a directory')
    if not os.access(found, os.W_OK):
        raise UserError(f'nothing can be written in {path}: {found} is write-protected')


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder that becomes `out` at the end; after an exception nothing is left."""
    storage.check_local(out)
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f'--out={out} exists already: remove it, or name another')
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f'.{out.name}.'))
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(folder, 0o777 & ~umask)
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
