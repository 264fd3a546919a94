"""What `--help` says of the config: its sections, and the fields of one of them."""

import dataclasses
import inspect
from typing import Any

from mim_jax import config, kinds
from mim_jax.errors import UserError


def sections(cls: type) -> str:
    """The sections of a config, and of which there are several to choose from."""
    lines = ['sections of the config; --help=SECTION says what is in one:']
    for name, (kind, options) in _sections(cls).items():
        chosen = ' | '.join(sorted(options)) if options else _first_line(kind)
        lines.append(f'  {name:<12} {chosen}')
    return '\n'.join(lines)


def section(cls: type, path: str) -> str:
    """The docs and fields of the section 'a.b'; of one of several, 'a.NAME' is the one.

    Raises UserError where there is none.
    """
    kind, options, walked = cls, None, []
    for part in path.split('.'):
        known = {**_sections(kind)} if options is None else {}
        if options and part in options:
            kind, options = options[part], None
        elif part in known:
            kind, options = known[part]
        else:
            there = sorted(options or known)
            where = '.'.join(walked) or 'the config'
            raise UserError(f'--help={path}: {where} has {", ".join(there) or "no sections"}.')
        walked.append(part)
    if options:
        return f'{path} is one of: {", ".join(sorted(options))}; --help={path}.NAME says more.'
    lines = [inspect.cleandoc(kind.__doc__ or ''), '', f'fields of {path}:']
    lines += [f'  {name:<24} {text}' for name, text in _fields(kind)]
    return '\n'.join(lines)


def _sections(cls: type) -> dict[str, tuple[type, Any]]:
    """Name -> (dataclass, its options where there are several)."""
    found = {}
    for field, kind in config.fields(cls):
        options = field.metadata.get('options')
        if options or dataclasses.is_dataclass(kind):
            found[field.name] = (None if options else kind, options)
    return found


def _fields(cls: type) -> list[tuple[str, str]]:
    rows = []
    for field, kind in config.fields(cls):
        options = field.metadata.get('options')
        if options:
            rows.append((field.name, f'section, one of {", ".join(sorted(options))}'))
        elif dataclasses.is_dataclass(kind):
            rows.append((field.name, 'section'))
        else:
            rows.append((field.name, f'{kinds.described(kind)}; default {_default(field)}'))
    return rows


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    made = field.default_factory is not dataclasses.MISSING
    return repr(field.default_factory()) if made else 'none: it must be given'


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or '').splitlines()[0]
