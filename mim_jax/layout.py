"""Where things lie in a work directory; for what only looks, it imports nothing."""

from pathlib import Path

CONFIG_FILE = 'config.json'
CHANGES_FILE = 'config_changes.jsonl'
LOCK_FILE = 'lock'
SECTIONS = ('data', 'objective', 'model')  # some that every run's config has


def checkpoints(workdir: str | Path) -> Path:
    """The folder with a folder per step."""
    return Path(workdir).absolute() / 'checkpoints'
