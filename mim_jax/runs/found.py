"""Work directories below a folder, and what each says of its run."""

import dataclasses
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_jax import integrity, layout, provenance, remote_lock, storage
from mim_jax.errors import UserError
from mim_jax.logs import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its work directory has it.

    name: its path below the folder that was looked at. config: plain values, {} where it cannot be
    read. metrics: the objects of metrics.jsonl. state: running, finished, stopped, nothing saved or
    damaged. step: that of its newest intact checkpoint, while it runs that of its last figures.
    length: its total in steps, or as the config says it. notes: what is wrong, sentences.
    """

    name: str
    workdir: Path
    config: Mapping[str, Any]
    metrics: list[dict]
    state: str
    step: int
    length: int | str | None
    saved: tuple[int, ...]
    notes: tuple[str, ...]

    def values(self, metric: str) -> dict[int, float]:
        """A metric over steps."""
        found = ((line['step'], line.get(metric)) for line in self.metrics)
        return {step: value for step, value in found if isinstance(value, (int, float))}

    @property
    def figures(self) -> dict[str, tuple[int, float]]:
        """(step, value) of the last of every figure of an evaluation, in their order, and of the
        loss.
        """
        names = (n for line in self.metrics for n in line if n.startswith('eval/'))
        found = {name: self.values(name) for name in (*dict.fromkeys(names), 'train/loss')}
        return {name: list(values.items())[-1] for name, values in found.items() if values}


def find(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in and below folders, by name.

    Raises UserError where there is no such folder, or no run in it.
    """
    runs = []
    for folder in map(storage.path, folders):
        if not folder.is_dir():
            raise UserError(f'{folder}: there is no such folder; name one that has runs in it.')
        paths = sorted(_work_directories(folder))
        if not paths:
            raise UserError(
                f'{folder}: there is no run in it; `python -m mim_jax.main --config=…` starts one.'
            )
        for path in paths:
            # Of several folders names may be the same.
            name = path.as_posix() if len(folders) > 1 else _below(folder, path)
            runs.append(read(path, name=name))
    return runs


def _below(folder: Path, path: Path) -> str:
    """A path as seen from a folder; the folder's own name where it is that."""
    if storage.is_remote(folder):
        below = str(path).removeprefix(str(folder)).strip('/')
    else:
        below = '' if path == folder else path.relative_to(folder).as_posix()
    return below or folder.resolve().name


def read(workdir: Path, *, name: str) -> Run:
    """What a work directory says. It never fails for what is in there: that goes to the notes."""
    config, notes, lengthened = {}, [], 0
    try:
        config = layout.read_config(workdir)
        lengthened = layout.lengthened_after(workdir)
    except UserError as error:
        notes.append(str(error))
    metrics, lost = _metrics(workdir)
    if lost:
        notes.append(f'{lost} damaged lines in {METRICS_FILE}')
    folder = layout.checkpoints(workdir)
    saved, intact = layout.saved_steps(workdir), None
    for step in reversed(saved):
        wrong = integrity.damage(folder / str(step), digests=False)
        if wrong is None:
            intact = step
            break
        notes.append(f'the checkpoint of step {step} is damaged: {wrong}')
    # A checkpoint from before the run was lengthened knows another length.
    known = intact is not None and intact > lengthened
    length = _length(config, provenance.read(folder / str(intact)) if known else None)
    last = max((line['step'] for line in metrics), default=0)
    if is_running(workdir):
        state = 'running'
    elif not config or (saved and intact is None):
        state = 'damaged'
    elif intact is None:
        state = 'nothing saved'
    else:
        state = 'finished' if intact == length else 'stopped'
    step = last if state in ('running', 'nothing saved') else intact or 0
    return Run(name, workdir, config, metrics, state, step, length, tuple(saved), tuple(notes))


def is_running(workdir: Path) -> bool:
    """Whether a process holds the lock of a work directory."""
    if storage.is_remote(workdir):
        return remote_lock.is_held(workdir / layout.LOCK_FILE)
    try:
        with open(workdir / layout.LOCK_FILE, encoding='utf-8') as file:
            if not file.read():  # a run that ends empties it
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # none there, or a file system without locks
        pass
    return False


def _work_directories(folder: Path) -> Iterator[Path]:
    """Folders with a config, figures or checkpoints of a run, not those inside of such ones."""
    for path, folders, files in storage.walk(folder):
        if METRICS_FILE in files or 'checkpoints' in folders or _is_config(path, files):
            folders.clear()
            yield path
        folders[:] = [name for name in folders if not name.startswith('.')]


def _is_config(workdir: Path, files: Sequence[str]) -> bool:
    """Whether there is the config of a run, and not, say, that of exported weights."""
    if layout.CONFIG_FILE not in files:
        return False
    try:
        layout.read_config(workdir)
    except layout.OfSomethingElse:
        return False
    except UserError:
        pass
    return True


def _metrics(workdir: Path) -> tuple[list[dict], int]:
    """The objects of metrics.jsonl, and how many lines are none."""
    try:
        found = [line for line in read_metrics(workdir) if isinstance(line['step'], int)]
        with (workdir / METRICS_FILE).open('rb') as file:
            return found, sum(1 for _ in file) - len(found)
    except OSError:
        return [], 0


def _length(config: Mapping[str, Any], record: provenance.Record | None) -> int | str | None:
    train = config.get('train')
    train = train if isinstance(train, Mapping) else {}
    if isinstance(train.get('total_steps'), int):
        return train['total_steps']
    if record:
        return record.get('total_steps')
    for unit in ('epochs', 'examples'):
        if isinstance(train.get(f'total_{unit}'), (int, float)):
            return f'{train[f"total_{unit}"]:g} {unit}'
    return None
