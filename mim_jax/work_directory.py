"""A work directory: the config it belongs to, and the encoder in it; neither needs the program."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from absl import logging

from mim_jax import checkpoints, config, distributed, remote_lock, storage
from mim_jax.errors import UserError
from mim_jax.folders import check_folder
from mim_jax.layout import CHANGES_FILE, CONFIG_FILE, LENGTH, LOCK_FILE, read_config
from mim_jax.models.vit import ViT

# What the system says where a disk is full, a quota used up, a file too large, or a device is
# read-only, broken, or away.
UNWRITABLE = {
    getattr(errno, name) for name in ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO', 'ESTALE')
}

# What may change between two starts in one work directory: nothing here alters the numbers of the
# run beyond the order of floating-point sums. (That data.eval_split says what a plain folder holds
# out, and so what it trains on, is for the data's fingerprint to tell.)
RESUMABLE = (
    r'(mesh|checkpoint|eval|log)\.',
    r'train\.skip_nonfinite:',  # how many there may be; none of them changes a parameter
    r'data\.(workers|threads|prefetch|max_corrupt_share|eval_split|eval_crop|source\..*path):',
    # Of every network that a method has.
    r'(model|objective)\.([^:]*\.)?(scan|remat|attention_kernel):',
    r'objective\.morphing\.grouping\.kernel:',
    r'(objective|init)\.([^:]*\.)?weights: (?!None ).* -> (?!None$)',  # a file may have moved
)
# Seconds for which a lock that is held is tried again: `mim_jax.runs` holds it while it looks.
PATIENCE = 1.0


def claim(workdir: str | Path, run: Any, *, after_step: int = 0, extend: bool = False) -> None:
    """Writes the config of a run (an `Experiment`) into its work directory, or checks that it
    belongs there. Where a run goes on with other values of RESUMABLE, CHANGES_FILE gets a line with
    these and `after_step`, the checkpoint from which it goes on. extend: see `check`.

    Raises UserError as `check` does, and where `workdir` cannot be a directory to write in; nothing
    is written then.
    """
    if not storage.is_remote(workdir):
        check_folder(workdir)
    changed = check(workdir, run, extend=extend)
    workdir = storage.path(workdir)
    if jax.process_index() == 0:
        storage.make_folder(workdir)
        if changed:
            line = json.dumps({'after_step': after_step, 'changed': changed})
            storage.append(workdir / CHANGES_FILE, line + '\n')
        storage.write_whole(workdir / CONFIG_FILE, json.dumps(as_dict(run), indent=2) + '\n')


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a work directory; process 0 does it for all of a run.

    The lock is the operating system's, on a file in there, and ends with the process however that
    ends. A file system that has no locks is warned of. In an object store it is `remote_lock`'s.

    Raises UserError, on every process, where another run holds it, `workdir` cannot be a directory
    to write in, or not all processes see the same one.
    """
    workdir = storage.path(workdir)
    with _told(workdir), contextlib.ExitStack() as held:
        with distributed.decided_by_main(f'--workdir={workdir}: it cannot be used') as decide:
            if decide:
                with _told(workdir):  # what process 0 is told, the others are
                    held.enter_context(_locked(workdir))
        _check_shared(workdir)
        yield


def _check_shared(workdir: Path) -> None:
    """Raises UserError, on every process, where there is one that does not see the work directory
    of process 0.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    # A new name: no file system remembers that there was none.
    number = distributed.as_main_says(secrets.randbelow(2**31))
    sign = workdir / f'seen_by_all.{number}'
    if distributed.is_main():
        sign.write_text('', encoding='utf-8')
    multihost_utils.sync_global_devices('the sign is written')
    seen = multihost_utils.process_allgather(np.int32(sign.exists()))
    if distributed.is_main():
        sign.unlink()
    blind = ', '.join(str(process) for process in np.flatnonzero(seen == 0))
    if blind:
        raise UserError(
            f'--workdir={workdir}: process {blind} does not see that of process 0. All of them '
            'write checkpoints into it together: name one that all hosts share (on a shared file '
            'system, or gs://BUCKET/…).'
        )


@contextlib.contextmanager
def _told(workdir: str | Path) -> Iterator[None]:
    """One sentence where a run cannot write in its work directory any more."""
    try:
        yield
    except OSError as error:
        checkpoints.check_there(storage.path(workdir))
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f'{error.filename or workdir}: nothing more can be written ({error.strerror}); '
            f'{checkpoints.newest(workdir)}. Mend the cause and start the same command again.'
        ) from error


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    if storage.is_remote(workdir):
        with remote_lock.locked(workdir / LOCK_FILE):
            yield
        return
    for folder in (workdir, checkpoints.directory(workdir)):
        check_folder(folder)
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, 'a+', encoding='utf-8') as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or 'another process'
            raise UserError(
                f'--workdir={workdir} is in use by {holder}: stop that run, or choose another '
                'work directory.'
            ) from error
        except OSError as error:
            logging.warning(
                '%s cannot be locked here (%s): start only one run in it.', workdir, error.strerror
            )
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _lock(file: IO) -> None:
    """Takes the lock of an open file. Raises BlockingIOError where it is held for PATIENCE."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(PATIENCE / 20)


def check(workdir: str | Path, run: Any, *, extend: bool = False) -> list[str]:
    """The fields in which a run differs from that in a work directory, all of which may (RESUMABLE:
    they do not alter the numbers of a run). extend: its length may differ too.

    Raises UserError, naming the fields, where the work directory holds a run of another config, or
    checkpoints without one.
    """
    if storage.is_remote(workdir) and not str(workdir).startswith('gs://'):
        raise UserError(
            f'--workdir={workdir}: a work directory lies on a file system, or in gs://BUCKET/….'
        )
    if not (storage.path(workdir) / CONFIG_FILE).exists():
        if checkpoints.saved_steps(workdir):
            raise UserError(
                f'--workdir={workdir} has checkpoints but no {CONFIG_FILE}, so that nothing says '
                'what run they are of: bring it back, or choose another work directory.'
            )
        if extend:
            raise UserError(f'--extend: there is no run in --workdir={workdir} to be lengthened.')
        return []
    changed = config.differences(as_dict(completed(workdir, run)), as_dict(run))
    allowed = (*RESUMABLE, LENGTH) if extend else RESUMABLE
    others = [line for line in changed if not any(re.match(p, line) for p in allowed)]
    if others:
        longer = all(re.match(LENGTH, line) for line in others)
        raise UserError(
            f'--workdir={workdir} holds a run of another config ({"; ".join(others)}); '
            'choose another work directory, or set these fields back to resume it'
            + (', or lengthen it on purpose with --extend.' if longer else '.')
        )
    return changed


def completed(workdir: str | Path, run: Any) -> Any:
    """The config in a work directory as what `run` is, fields of later versions at their defaults.

    Raises UserError where this version cannot read it.
    """
    try:
        return config.build(type(run), read_config(workdir), path='')
    except UserError as error:
        raise UserError(
            f'--workdir={workdir} holds a run whose config this version cannot read ({error}); '
            'choose another work directory.'
        ) from error


def as_dict(run: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(config.written(run).to_dict()))


def section(workdir: str | Path, name: str) -> Mapping[str, Any]:
    """One of the sections of the run's config, as plain values. Raises UserError as
    `layout.read_config` does."""
    return read_config(workdir)[name]


def load_encoder(
    workdir: str | Path, *, step: int | None = None, average: bool | None = None
) -> tuple[ViT, Any]:
    """The encoder of a run and its parameters (host arrays).

    step: of this checkpoint, None: the newest. average: the average of its parameters, or (False)
    the parameters themselves; None: the average if the run averages it.

    Raises UserError where there is no such checkpoint, or no average.
    """
    model = config.build(ViT, section(workdir, 'model'), path='model')
    variables, _ = checkpoints.restore_variables(workdir, step=step)
    return model, chosen(variables, average=average, part='encoder', workdir=workdir)['encoder']


def chosen(
    variables: dict[str, Any], *, average: bool | None, part: str, workdir: str | Path
) -> dict[str, Any]:
    """The parameters of a run or their average, as `load_encoder` chooses for one part of them.

    Raises UserError where that part is not there.
    """
    averaged = part in variables.get('ema', {})
    if average and not averaged:
        raise UserError(
            f'{workdir}: the run keeps no average of its {part}; take the parameters themselves'
        )
    found = variables['ema'] if averaged and average is not False else variables['params']
    if part not in found:
        raise UserError(f'{workdir}: the run has no {part}, only {", ".join(sorted(found))}')
    return found
