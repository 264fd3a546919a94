"""What made a checkpoint: config, code, packages, devices, data and weights, kept inside of it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_jax import config, integrity

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# What a run that resumes is told of where it differs: its numbers may then differ too.
SURROUNDINGS = ('code', 'python', 'packages', 'devices')

Record = dict[str, Any]


def record(
    settings: Mapping[str, Any], *, total_steps: int, fingerprints: Mapping[str, str]
) -> Record:
    """That of this process, plain values.

    settings: the resolved config. fingerprints: of data and weights, by name.
    """
    import jax

    device = jax.devices()[0]
    return {
        'config': digest(settings),
        'total_steps': total_steps,
        'code': {'mim_jax': _version('mim_jax'), 'commit': commit()},
        'python': platform.python_version(),
        'packages': {name: _version(name) for name in PACKAGES},
        'devices': {
            'kind': device.device_kind,
            'count': jax.device_count(),
            'processes': jax.process_count(),
        },
        'fingerprints': dict(fingerprints),
    }


def digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config, in whatever order its fields stand."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def commit() -> str | None:
    """The git commit of this code, ending in -dirty where files differ from it; None where the code
    is not a checkout.
    """
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(folder), *arguments]
        env = {**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}  # looking changes nothing
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        done.check_returncode()
        return done.stdout.strip()

    try:
        # Installed code may lie in an environment below somebody else's repository.
        if Path(git('rev-parse', '--show-toplevel')).resolve() != folder.parent:
            return None
        return git('describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')
    except (OSError, subprocess.SubprocessError):
        return None


def read(checkpoint: Path) -> Record | None:
    """That of a checkpoint's folder; None where an older version wrote it, or it is damaged."""
    found = _metadata(checkpoint).get('custom_metadata')
    return found if isinstance(found, dict) and found else None


def saved_at(checkpoint: Path) -> float | None:
    """When a checkpoint was whole, in seconds since 1970; None where it does not say so."""
    found = _metadata(checkpoint).get('commit_timestamp_nsecs')
    return found / 1e9 if isinstance(found, int) else None


def news(before: Record | None, now: Record) -> list[str]:
    """What a run that resumes from a checkpoint made by `before` is told: a line for what it runs
    on (SURROUNDINGS), a line for its length, as far as they differ.
    """
    if before is None:
        return []
    old, new = ({name: each.get(name) for name in SURROUNDINGS} for each in (before, now))
    changed = config.differences(old, new)
    lines = [f'it goes on with other versions or devices: {"; ".join(changed)}'] if changed else []
    steps = before.get('total_steps')
    if steps != now['total_steps']:
        lines.append(
            f'lengthened from {steps} to {now["total_steps"]} steps: learning rate and all other '
            'schedules are from here on those of the new length'
        )
    return lines


def _metadata(checkpoint: Path) -> dict[str, Any]:
    try:
        found = json.loads((checkpoint / integrity.WHOLE).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
