"""Configs and the dataclasses they describe.

A config section *is* a frozen dataclass: `written` puts a dataclass down as an
`ml_collections.ConfigDict`, `override` changes one value of it from the command line, and `build`
makes the dataclass from it, with a `UserError` of one sentence for every unknown key or wrong type.
A field declared by `choice` holds one of several dataclasses, picked by the key `name`.
"""

import dataclasses
import difflib
import importlib.util
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from mim_jax import kinds, suggestions
from mim_jax.errors import UserError
from mim_jax.kinds import fields

UNITS = ('steps', 'examples', 'epochs', 'percent')


def choice(options: Mapping[str, type], default: Any) -> Any:
    """A dataclass field that holds one of `options` (name -> frozen dataclass).

    `default` is an option's name, or an instance of one where other values than its own are wanted.
    """
    factory = options[default] if isinstance(default, str) else lambda: default
    return dataclasses.field(default_factory=factory, metadata={'options': options})


def context() -> Any:
    """A dataclass field that is not part of the config section: it is filled in by the code that
    builds the object.
    """
    return dataclasses.field(default=None, metadata={'context': True}, kw_only=True)


def written(instance: Any) -> ConfigDict:
    """The config section that `build` would make the dataclass `instance` from."""
    section = ConfigDict()
    for field, kind in fields(type(instance)):
        value = getattr(instance, field.name)
        options = field.metadata.get('options')
        if options:
            section[field.name] = _written_option(options, value)
        elif dataclasses.is_dataclass(value):
            section[field.name] = written(value)
        elif value is None:
            # A typed hole: a config file can assign the field later, with a type check.
            simple = next(kinds.bare(k) for k in typing.get_args(kind) if k is not types.NoneType)
            section[field.name] = config_dict.placeholder(typing.get_origin(simple) or simple)
        else:
            section[field.name] = value
    return section


def option(options: Mapping[str, type], name: str, **fields: Any) -> ConfigDict:
    """The section of a field declared by `choice`, for a config file to assign: the option called
    `name`, with the given fields and its own defaults.
    """
    return _written_option(options, options[name](**fields)).lock()


def _written_option(options: Mapping[str, type], instance: Any) -> ConfigDict:
    name = next(name for name, kind in options.items() if kind is type(instance))
    section = ConfigDict({'name': name})
    section.update(written(instance))
    return section


def build(cls: type, section: Mapping, *, path: str) -> Any:
    """Makes `cls` from its config section; `path` is where the section stands in the config, for
    error messages.
    """
    _check_section(section, path)
    known = {field.name: (field, kind) for field, kind in fields(cls)}
    for key in section:
        if key not in known:
            raise UserError(suggestions.unknown(_join(path, str(key)), str(key), known))
    values = {}
    for key, value in section.items():
        field, kind = known[key]
        where = _join(path, key)
        options = field.metadata.get('options')
        if options:
            values[key] = _build_option(options, value, where)
        elif dataclasses.is_dataclass(kind):
            values[key] = build(kind, value, path=where)
        else:
            values[key] = kinds.checked(value, kind, f'config.{where}')
    try:
        return cls(**values)
    except ValueError as error:
        told = kinds.shown(str(error), longest=600)
        raise UserError(f'{_join("config", path)}: {told}') from error


def _check_section(section: Any, path: str) -> None:
    if not isinstance(section, (Mapping, ConfigDict)):
        raise UserError(
            f'config.{path} = {kinds.shown(repr(section))}: it is a section of several fields, and '
            f'no {type(section).__name__}.'
        )


def _join(path: str, key: str) -> str:
    return f'{path}.{key}' if path and key else path or key


def load(spec: str) -> ConfigDict:
    """Runs `get_config` of the Python file named by `spec`, "FILE.py" or "FILE.py:ARGUMENT"."""
    file, _, argument = spec.partition(':')
    path = Path(file)
    try:
        there = path.is_file()
    except OSError as error:
        raise UserError(f'--config={kinds.shown(spec)}: {error.strerror}.') from error
    if not there:
        nearest = difflib.get_close_matches(
            path.stem, [p.stem for p in path.parent.glob('*.py')], 1
        )
        hint = (
            f'did you mean {path.with_name(nearest[0] + ".py")}?'
            if nearest
            else 'name a Python file.'
        )
        raise UserError(
            f'--config={kinds.shown(spec)}: there is no file {kinds.shown(file)}; {hint}'
        )
    module_spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(module_spec)
    # A config may start from its neighbour: `from dtm_vitb import get_config`.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f'--config={spec}: {file} cannot be run: {_told(error)}') from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, 'get_config'):
        raise UserError(f'--config={spec}: {file} has no function get_config().')
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except (Exception, SystemExit) as error:
        raise UserError(f'--config={spec}: get_config() failed: {_told(error)}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'--config={spec}: get_config() must return a config (see '
            f'mim_jax.experiment.default_config), not {type(config).__name__}.'
        )
    return config


def _told(error: BaseException) -> str:
    """The first line of what an exception says."""
    lines = str(error.args[0] if error.args else error).splitlines()
    return lines[0] if lines else type(error).__name__


def assignments(arguments: list[str], *, prefix: str = '--config.') -> list[tuple[str, str]]:
    """The ("a.b.c", "text") pairs of `--config.a.b.c=text`, or of `--config.a.b.c text`.

    Raises UserError for an argument of another form.
    """
    pairs, rest = [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition('=')
        if not prefix or not name.startswith(prefix):
            fields = f' and {prefix}FIELD=VALUE' if prefix else ''
            raise UserError(f'{argument}: unknown argument; there are those of --help{fields}.')
        if not equals:
            value = next(rest, None)
            if value is None:
                raise UserError(f'{argument}: a value is missing; write {argument}=VALUE.')
        pairs.append((name.removeprefix(prefix), value))
    return pairs


def override(config: ConfigDict, cls: type, assignments: list[tuple[str, str]]) -> ConfigDict:
    """Applies ("a.b.c", "text") pairs in order, each text read as the type of its field in `cls`.

    Naming another option of a choice (`….name`) brings that option's defaults. A duration replaces
    the file's duration of whichever unit, so that `train.total_steps` shortens a recipe written in
    epochs.
    """
    given = {path for path, text in assignments if text.lower() != 'none'}
    for path, text in sorted(assignments, key=lambda pair: not pair[0].endswith('.name')):
        section, kind, options = config, cls, None
        *parents, key = path.split('.')
        for depth, part in enumerate(parents):
            where = '.'.join(parents[: depth + 1])
            field, part_kind = suggestions.field(kind, part, where, root=cls, config=config)
            options = field.metadata.get('options')
            if not options and not dataclasses.is_dataclass(part_kind):
                raise UserError(f'config.{kinds.shown(path)}: {part} is a value, not a section.')
            section = _section(section, part, where)
            kind = options[_option_name(options, section, where)] if options else part_kind
        if options and key == 'name':
            if text not in options:
                raise UserError(suggestions.unknown(f'{path}={text}', text, options, 'option'))
            if text != section['name']:
                with section.unlocked():
                    for old in list(section):
                        del section[old]
                    section['name'] = text
                    section.update(written(options[text]()))
            continue
        field, kind = suggestions.field(kind, key, path, root=cls, config=config)
        if field.metadata.get('options') or dataclasses.is_dataclass(kind):
            inner = ', '.join(sorted(_section(section, key, path)))
            raise UserError(f'config.{path} is a section: set one of its fields, {inner}.')
        value = kinds.parsed(text, kind, path)
        stem, _, unit = key.rpartition('_')
        if unit in UNITS and value is not None:
            for other in UNITS:
                sibling = f'{stem}_{other}'
                if other != unit and sibling in section and section[sibling] is not None:
                    if '.'.join([*parents, sibling]) in given:
                        raise UserError(
                            f'config.{path} and {sibling} are both given: keep one of them.'
                        )
                    section[sibling] = None
        with section.unlocked(), section.ignore_type():  # a file may have left it out
            section[key] = value
    return config


def differences(old: Mapping, new: Mapping, prefix: str = '') -> list[str]:
    """The fields that differ between two nested plain dicts, each as "a.b: old -> new"."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f'{prefix}{key}.')
        elif before != after:
            lines.append(f'{prefix}{key}: {before} -> {after}')
    return lines


def _section(parent: ConfigDict, part: str, where: str) -> ConfigDict:
    """The section that a config has there, as an override goes through it."""
    _check_section(parent.get(part), where)
    return parent[part]


def _build_option(options: Mapping[str, type], section: Mapping, where: str) -> Any:
    _check_section(section, where)
    name = _option_name(options, section, where)
    return build(options[name], {k: v for k, v in section.items() if k != 'name'}, path=where)


def _option_name(options: Mapping[str, type], section: Mapping, where: str) -> str:
    name = section.get('name')
    if not isinstance(name, str) or name not in options:
        shown = kinds.shown(repr(name))
        raise UserError(
            suggestions.unknown(f'{where}.name = {shown}', str(name), options, 'option')
        )
    return name
