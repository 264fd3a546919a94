"""Where things lie in a work directory, and what its files say; for what only looks, it imports
neither JAX nor Orbax.
"""

import json
import re
from pathlib import Path
from typing import Any

from mim_jax import storage
from mim_jax.errors import UserError

CONFIG_FILE = 'config.json'
CHANGES_FILE = 'config_changes.jsonl'
LOCK_FILE = 'lock'
# Orbax writes it last of a checkpoint where it cannot rename a whole one into its place.
COMMIT_FILE = 'commit_success.txt'
SECTIONS = ('data', 'objective', 'model')  # some that every run's config has
# What --extend may change: the schedules are then those of the new length.
LENGTH = r'train\.total_'


class OfSomethingElse(UserError):
    """A config that is not that of a run."""


def checkpoints(workdir: str | Path) -> Path:
    """The folder with a folder per step."""
    return storage.path(workdir).absolute() / 'checkpoints'


def saved_steps(workdir: str | Path) -> list[int]:
    """The steps of a run's whole checkpoints, in order; one that is being written has another name
    until then, or lacks COMMIT_FILE.
    """
    try:
        paths = list(checkpoints(workdir).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(path.name) for path in paths if path.name.isdecimal() and _is_whole(path))


def _is_whole(checkpoint: Path) -> bool:
    if storage.is_remote(checkpoint):
        return (checkpoint / COMMIT_FILE).exists()
    return checkpoint.is_dir()


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of the run in a work directory, as plain values, whichever version wrote it.

    Raises UserError if there is none, OfSomethingElse if it is not that of a run.
    """
    path = storage.path(workdir) / CONFIG_FILE
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f'{workdir}: there is no {CONFIG_FILE}, so this is not a work directory of '
            'mim_jax.main; name one in which a run was started.'
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'{path} cannot be read ({error}); the work directory is damaged.'
        ) from None
    if not isinstance(found, dict) or not all(isinstance(found.get(s), dict) for s in SECTIONS):
        raise OfSomethingElse(
            f'{path.parent} is not a work directory of mim_jax.main: its {CONFIG_FILE} is not that '
            "of a run; if it holds another project's weights, `python -m mim_jax.weights import` "
            'reads them.'
        )
    return found


def lengthened_after(workdir: str | Path) -> int:
    """The last step that a run did at another length than it has now; 0 where it has had only one.

    Raises UserError where CHANGES_FILE cannot be read.
    """
    path = storage.path(workdir) / CHANGES_FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        return max(
            (
                int(line['after_step'])
                for line in lines
                if any(re.match(LENGTH, change) for change in line['changed'])
            ),
            default=0,
        )
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        raise UserError(f'{path} cannot be read; the work directory is damaged.') from None
