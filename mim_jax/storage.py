"""Where a work directory lies: in a folder of this machine or, by a URL such as gs://BUCKET/runs/x,
in an object store.

The former is a `pathlib.Path`, the latter one of universal_pathlib with the same methods. What an
object store does otherwise is behind the functions of this file: nothing grows there (an object is
written whole, and appears whole), nothing is renamed at a stroke, and a folder is there as long as
something is in it.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from absl import logging

from mim_jax.errors import UserError

INSTALL = "`pip install -e '.[gcs]'`"
CREDENTIALS = (
    '`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS, says who you are; '
    'who that is needs the roles Storage Object User and Storage Legacy Bucket Reader in the bucket'
)
# What opens a URL raises these packages' own errors, as many kinds as there are layers.
PACKAGES = ('aiohttp', 'fsspec', 'gcsfs', 'google', 'requests', 'upath', 'urllib3')
# Seconds between two copies of what grows, and at most which share of the time they take.
INTERVAL, SHARE = 30, 0.05


# What pathlib has made of a URL has lost a slash.
URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+')


def is_remote(path: Any) -> bool:
    """Whether a path, or its text, is a URL."""
    return URL.match(str(path)) is not None


def check_local(path: Any) -> None:
    """Raises UserError for a URL."""
    if is_remote(path):
        raise UserError(f'{path}: name a folder of this machine, and copy it from there.')


def path(text: Any) -> Path:
    """The path of a text (or of a path), whose methods are pathlib's wherever it is.

    Raises UserError where a URL cannot be opened: of what nothing opens, of a bucket that is not
    there, cannot be reached, or may not be looked at.
    """
    if not is_remote(text):
        return Path(text)
    found = _opened(URL.sub(r'\1://', str(text), count=1).rstrip('/'))
    _reach(found.protocol, found.path.split('/')[0], found.fs)
    return found


def _opened(url: str) -> Any:
    # Its support of other kinds of buckets asks for rights that reading and writing do not need.
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    try:
        import fsspec
        from upath import UPath

        # Others write there too: what was seen a while ago is not remembered (Orbax' own, too).
        fsspec.config.conf.setdefault('gs', {}).setdefault('use_listings_cache', False)
        found = UPath(url)
        assert found.fs
    except ImportError as error:
        raise UserError(f'{url}: such paths need another package ({error}): {INSTALL}.') from error
    except ValueError as error:
        raise UserError(f'{url} cannot be opened: {_line(error)}.') from error
    # It logs the traces of errors that it raises.
    getLogger('gcsfs').setLevel(CRITICAL)
    return found


@functools.cache
def _reach(protocol: str, bucket: str, fs: Any) -> None:
    """Raises UserError where nothing can be listed in a bucket. What is reached once is not asked
    for again.
    """
    if protocol not in ('gs', 'gcs'):
        return
    name = f'{protocol}://{bucket}'
    try:
        fs.call('GET', 'b/{}/o', bucket, maxResults=1)
    except FileNotFoundError as error:
        raise UserError(f'{name}: there is no such bucket; create it, or name another.') from error
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        denied = getattr(error, 'code', None) == 401 or reason.startswith('Forbidden')
        advice = CREDENTIALS if denied else 'is this machine on the network, and the address right?'
        what = 'may not be looked at' if denied else 'cannot be reached'
        raise UserError(f'{name} {what} ({reason}): {advice}') from error


def trouble(error: BaseException) -> str | None:
    """What an object store, or the way to it, says in an error, a phrase; None where the error is
    of another kind.
    """
    theirs = type(error).__module__.split('.')[0] in PACKAGES
    if theirs or (isinstance(error, OSError) and error.errno is None):
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    said = str(error).strip() or type(error).__name__
    return ' '.join(said.split())[:200].rstrip('.')


@contextlib.contextmanager
def told(place: Any) -> Iterator[None]:
    """One sentence where an object store that was reached does not let itself be read or written
    any more; of a place on this machine it says nothing.
    """
    try:
        yield
    except Exception as error:
        reason = trouble(error) if is_remote(place) else None
        if reason is None:
            raise
        raise UserError(
            f'{place} could not be read or written ({reason}); what is saved there is kept. Mend '
            'the cause and start the same command again.'
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where there are folders."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def is_folder(folder: Path) -> bool:
    """Whether a folder is there to write in."""
    return is_remote(folder) or folder.is_dir()


def write_whole(path: Path, text: str) -> None:
    """Writes a text file: who reads it, also after a kill, finds the old one or the new one."""
    if is_remote(path):
        path.write_text(text, encoding='utf-8')
        return
    temporary = path.with_name(f'{path.name}.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append(path: Path, text: str) -> None:
    """Adds to a small text file."""
    if is_remote(path):
        before = path.read_text(encoding='utf-8') if path.exists() else ''
        path.write_text(before + text, encoding='utf-8')
        return
    with open(path, 'a', encoding='utf-8') as file:
        file.write(text)


def rename(folder: Path, target: Path) -> None:
    """Gives a folder another name. In an object store its files are copied one by one."""
    if is_remote(folder):
        folder.fs.mv(folder.path, target.path, recursive=True)
    else:
        folder.rename(target)


def files(folder: Path) -> dict[str, tuple[int, str | None]]:
    """Of every file below a folder, by its path from there: its size in bytes, and what the store
    itself has found of its contents (CRC-32C), None where it does not say.
    """
    if is_remote(folder):
        found = folder.fs.find(folder.path, detail=True)
        names = {path[len(folder.path) :].strip('/'): info for path, info in found.items()}
        return {n: (info['size'], info.get('crc32c')) for n, info in sorted(names.items())}
    found = {}
    for path in sorted(folder.rglob('*')):
        with contextlib.suppress(FileNotFoundError):  # it was a temporary one
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.stat().st_size, None
    return found


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk."""
    walked = folder.walk() if is_remote(folder) else os.walk(folder)
    for found, folders, names in walked:
        yield path(found), folders, names


def fetched(path: Path) -> Path:
    """A file on this machine: itself or, of a URL, a copy that is there until this process ends.

    Raises FileNotFoundError where a URL has none.
    """
    return _copy(path, path.fs.ukey(path.path)) if is_remote(path) else path


@functools.cache
def _copy(path: Path, contents: str) -> Path:
    """contents: a text that changes with them."""
    with path.open('rb') as source:
        copy = Path(_copies().name, f'{len(os.listdir(_copies().name))}{path.suffix}')
        with open(copy, 'wb') as target:
            shutil.copyfileobj(source, target, 2**20)
    return copy


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='mim_jax_fetched_')


class Mirror:
    """A folder on this machine in which files grow; in an object store they cannot.

    local: where to write. Of a folder on this machine it is that one, and nothing is to be done.
    Otherwise it is a temporary one, and `sync` copies what has changed in it, file by file, each
    whole. A process that is killed loses what was not copied.
    """

    def __init__(self, folder: Path):
        self._folder, self._temporary = folder, None
        self._sent, self._next = {}, 0.0
        self.local = folder
        if is_remote(folder):
            self._temporary = tempfile.TemporaryDirectory(prefix='mim_jax_')
            self.local = Path(self._temporary.name)

    def fetch(self, *names: str) -> None:
        """Brings files that are there already, to go on with them."""
        if self._temporary is None:
            return
        for name in names:
            if (self._folder / name).exists():
                (self.local / name).write_bytes((self._folder / name).read_bytes())
        self._sent = dict(self._states())

    def sync(self, *, now: bool = False) -> None:
        """Copies what has changed, if the last time is INTERVAL ago, or `now`. Where that fails it
        is left to the next time, and raised where it is to be `now`.
        """
        if self._temporary is None or not (now or time.monotonic() > self._next):
            return
        began = time.monotonic()
        try:
            for path, state in self._states():
                if self._sent.get(path) != state:
                    target = self._folder / path.relative_to(self.local).as_posix()
                    target.write_bytes(path.read_bytes())
                    self._sent[path] = state
        except Exception as error:
            if now or trouble(error) is None:
                raise
            logging.warning(
                '%s: what is new could not be written (%s); the run goes on and tries again.',
                self._folder,
                trouble(error),
            )
        took = time.monotonic() - began
        self._next = began + max(INTERVAL, took / SHARE)

    def close(self) -> None:
        self.sync(now=True)
        if self._temporary is not None:
            self._temporary.cleanup()

    def _states(self) -> list[tuple[Path, tuple[int, int]]]:
        """Files, and what tells that they changed; those that were written first come first, so
        that a kill between two leaves what a kill between their writing would have.
        """
        paths = [path for path in self.local.rglob('*') if path.is_file()]
        states = [(path, path.stat()) for path in paths]
        states.sort(key=lambda found: found[1].st_mtime_ns)
        return [(path, (state.st_size, state.st_mtime_ns)) for path, state in states]
