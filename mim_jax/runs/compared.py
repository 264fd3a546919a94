"""In which fields of their configs runs differ, in words as short as they can be."""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

# What alters the numbers of a run comes first, and how it is judged and kept last.
LAST = ('eval', 'mesh', 'checkpoint', 'log')


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Of every config the fields, by short name, in which it is not as more than half of all are.

    Fields that one of them lacks (another version wrote it, or it has another method) are not
    compared; a config that could not be read, {}, takes no part.
    """
    flat = [_flat(config) for config in configs]
    known = [fields for fields in flat if fields]
    common = [name for name in known[0] if all(name in f for f in known)] if known else []
    common.sort(key=lambda name: name.split('.')[0] in LAST)
    usual = {}
    for name in common:
        counted = collections.Counter(fields[name] for fields in known)
        value, count = counted.most_common(1)[0]
        if count < len(known):
            usual[name] = value if 2 * count > len(known) else None
    short = shortened(usual)
    return [
        {short[n]: fields[n] for n, value in usual.items() if fields[n] != value} if fields else {}
        for fields in flat
    ]


def shortened(names: Sequence[str]) -> dict[str, str]:
    """Each of several dotted names -> as many of its last parts as tell it from the others.

    A choice's `name` is called by what it chooses.
    """
    found = {}
    for name in names:
        parts = name.removesuffix('.name').split('.')
        for count in range(1, len(parts) + 1):
            short = '.'.join(parts[-count:])
            if not any(_ends(other, short) for other in names if other != name):
                break
        found[name] = short
    return found


def _ends(name: str, ending: str) -> bool:
    return f'.{name.removesuffix(".name")}'.endswith(f'.{ending}')


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f'{prefix}{key}.')
        else:
            found[f'{prefix}{key}'] = _text(value)
    return found


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        return ','.join(map(_text, value)) or '()'
    return value if isinstance(value, str) else json.dumps(value).replace('null', 'none')
