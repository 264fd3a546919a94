"""Configs and the dataclasses they describe.

A config section *is* a frozen dataclass: `written` puts a dataclass down as an
`ml_collections.ConfigDict`, `override` changes one value of it from the command line, and `build`
makes the dataclass from it, with a `UserError` of one sentence for every unknown key or wrong type.
A field declared by `choice` holds one of several dataclasses, picked by the key `name`.
"""

import ast
import dataclasses
import difflib
import importlib.util
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from mim_jax.errors import UserError

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
    for field, kind in _fields(type(instance)):
        value = getattr(instance, field.name)
        options = field.metadata.get('options')
        if options:
            section[field.name] = _written_option(options, value)
        elif dataclasses.is_dataclass(value):
            section[field.name] = written(value)
        elif value is None:
            # A typed hole: a config file can assign the field later, with a type check.
            simple = next(_bare(k) for k in typing.get_args(kind) if k is not types.NoneType)
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
    kinds = {field.name: (field, kind) for field, kind in _fields(cls)}
    for key in section:
        if key not in kinds:
            raise UserError(unknown(_join(path, key), key, kinds))
    values = {}
    for key, value in section.items():
        field, kind = kinds[key]
        where = _join(path, key)
        options = field.metadata.get('options')
        if options:
            values[key] = _build_option(options, value, where)
        elif dataclasses.is_dataclass(kind):
            values[key] = build(kind, value, path=where)
        else:
            values[key] = _checked(value, kind, where)
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f'{_join("config", path)}: {error}') from error


def _join(path: str, key: str) -> str:
    return f'{path}.{key}' if path and key else path or key


def load(spec: str) -> ConfigDict:
    """Runs `get_config` of the Python file named by `spec`, "FILE.py" or "FILE.py:ARGUMENT"."""
    file, _, argument = spec.partition(':')
    path = Path(file)
    if not path.is_file():
        nearest = difflib.get_close_matches(
            path.stem, [p.stem for p in path.parent.glob('*.py')], 1
        )
        hint = (
            f'did you mean {path.with_name(nearest[0] + ".py")}?'
            if nearest
            else 'name a Python file.'
        )
        raise UserError(f'--config={spec}: there is no file {file}; {hint}')
    module_spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(module_spec)
    # A config may start from its neighbour: `from dtm_vitb import get_config`.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f'--config={spec}: {file} cannot be run: {_told(error)}') from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, 'get_config'):
        raise UserError(f'--config={spec}: {file} has no function get_config().')
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        raise UserError(f'--config={spec}: get_config() failed: {_told(error)}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'--config={spec}: get_config() must return a config (see '
            f'mim_jax.experiment.default_config), not {type(config).__name__}.'
        )
    return config


def _told(error: Exception) -> str:
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
    given = {path for path, _ in assignments}
    for path, text in sorted(assignments, key=lambda pair: not pair[0].endswith('.name')):
        section, kind, options = config, cls, None
        *parents, key = path.split('.')
        for depth, part in enumerate(parents):
            field, part_kind = _find(kind, part, '.'.join(parents[: depth + 1]))
            section = section[part]
            options = field.metadata.get('options')
            if options:
                part_kind = options[section['name']]
            if not dataclasses.is_dataclass(part_kind):
                raise UserError(f'config.{path}: {part} is a value, not a section.')
            kind = part_kind
        if options and key == 'name':
            if text not in options:
                raise UserError(unknown(f'{path}={text}', text, options, 'option'))
            if text != section['name']:
                with section.unlocked():
                    for old in list(section):
                        del section[old]
                    section['name'] = text
                    section.update(written(options[text]()))
            continue
        field, kind = _find(kind, key, path)
        if field.metadata.get('options') or dataclasses.is_dataclass(kind):
            raise UserError(
                f'config.{path} is a section: set one of its fields, {_listed(section[key])}.'
            )
        value = _parsed(text, kind, path)
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
        with section.ignore_type():
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


def _fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    # Linen modules are dataclasses too: their own bookkeeping fields are not configuration.
    return [
        (field, hints[field.name])
        for field in dataclasses.fields(cls)
        if field.init and field.name not in ('parent', 'name') and not field.metadata.get('context')
    ]


def _find(cls: type, key: str, path: str) -> tuple[dataclasses.Field, Any]:
    for field, kind in _fields(cls):
        if field.name == key:
            return field, kind
    for field, kind in _fields(cls):
        # A field that has moved into a section: an older command line, or a word left out.
        kinds = field.metadata.get('options', {'': kind})
        for name, inner in kinds.items():
            if dataclasses.is_dataclass(inner) and key in {f.name for f, _ in _fields(inner)}:
                of = f' (of {field.name}.name={name})' if name else ''
                stem = path.removesuffix(key)
                raise UserError(
                    f'config.{path}: there is no such key; did you mean '
                    f'{stem}{field.name}.{key}{of}?'
                )
    raise UserError(unknown(path, key, [field.name for field, _ in _fields(cls)]))


# Names that other code bases have for what is called otherwise here.
ALIASES = {
    'b1': 'beta1',
    'b2': 'beta2',
    'clip_grad': 'clip_norm',
    'dim': 'width',
    'embed_dim': 'width',
    'epochs': 'total_epochs',
    'hidden_size': 'width',
    'input_size': 'image_size',
    'img_size': 'image_size',
    'layers': 'depth',
    'lr': 'learning_rate',
    'max_lr': 'learning_rate',
    'min_lr': 'end_learning_rate',
    'num_heads': 'heads',
    'num_layers': 'depth',
    'num_workers': 'workers',
    'resolution': 'image_size',
    'steps': 'total_steps',
    'wd': 'weight_decay',
}


def unknown(path: str, key: str, known: Any, what: str = 'key') -> str:
    nearest = difflib.get_close_matches(key, list(known), 1, cutoff=0.5)
    if ALIASES.get(key) in known:
        nearest = [ALIASES[key]]
    hint = f'did you mean {nearest[0]}?' if nearest else f'the {what}s here are {_listed(known)}.'
    return f'config.{path}: there is no such {what}; {hint}'


def _listed(names: Any) -> str:
    return ', '.join(sorted(names))


def _build_option(options: Mapping[str, type], section: Mapping, where: str) -> Any:
    name = section.get('name')
    if name not in options:
        raise UserError(unknown(f'{where}.name = {name!r}', str(name), options, 'option'))
    return build(options[name], {k: v for k, v in section.items() if k != 'name'}, path=where)


def _alternatives(kind: Any) -> tuple:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.get_args(kind)
    return (kind,)


def fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    """The fields of a config section with their kinds, ranges included."""
    return _fields(cls)


def described(kind: Any) -> str:
    """A field's kind in words, its range included."""
    texts = [_described(kind)]
    inner = [k for a in _alternatives(kind) for k in (a, *typing.get_args(a))]
    for alternative in inner:
        if typing.get_origin(alternative) is typing.Annotated:
            texts.append(str(typing.get_args(alternative)[1].usual))
    return ', '.join(dict.fromkeys(texts))


def _bare(kind: Any) -> Any:
    """A kind without its range."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _described(kind: Any) -> str:
    names = []
    for alternative in map(_bare, _alternatives(kind)):
        if alternative is types.NoneType:
            names.append('none')
        elif typing.get_origin(alternative) is tuple:
            names.append(f'a tuple of {_bare(typing.get_args(alternative)[0]).__name__}')
        elif typing.get_origin(alternative) is typing.Literal:
            names.append('one of ' + ', '.join(map(repr, typing.get_args(alternative))))
        else:
            names.append(getattr(alternative, '__name__', str(alternative)))
    return ' or '.join(names)


_FAILED = object()


class _OutOfRange(ValueError):
    """The right kind of value, but none that the field may have."""


def _converted(value: Any, kind: Any) -> Any:
    """`value` as exactly `kind`, or _FAILED. Raises _OutOfRange."""
    if typing.get_origin(kind) is typing.Annotated:
        kind, allowed = typing.get_args(kind)
        result = _converted(value, kind)
        if result is not _FAILED and result not in allowed:
            raise _OutOfRange(f'must be {allowed}')
        return result
    if kind is Any:
        return value
    if kind is types.NoneType:
        return None if value is None else _FAILED
    if typing.get_origin(kind) is typing.Literal:
        return value if value in typing.get_args(kind) else _FAILED
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if isinstance(value, (int, float)) and kinds[-1] is Ellipsis:
            value = (value,)  # a field of several numbers says what a single one means
        if not isinstance(value, (tuple, list)):
            return _FAILED
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            return _FAILED
        items = tuple(_converted(v, k) for v, k in zip(value, kinds, strict=True))
        return _FAILED if any(item is _FAILED for item in items) else items
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else _FAILED
    if isinstance(value, float) and not math.isfinite(value):
        raise _OutOfRange('must be a finite number')
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _FAILED


def _checked(value: Any, kind: Any, where: str) -> Any:
    try:
        for alternative in _alternatives(kind):
            result = _converted(value, alternative)
            if result is not _FAILED:
                return result
    except _OutOfRange as error:
        raise UserError(f'config.{where} = {value!r}: {error}.') from None
    raise UserError(
        f'config.{where} = {value!r}: expected {_described(kind)}, got {type(value).__name__}.'
    )


def _parsed(text: str, kind: Any, path: str) -> Any:
    """The text of a command-line value, read as `kind`."""
    alternatives = _alternatives(kind)
    if text.lower() == 'none' and types.NoneType in alternatives:
        return None
    if text.lower() in ('true', 'false') and bool in alternatives:
        return text.lower() == 'true'
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    try:
        for candidate in (value, text):
            for alternative in alternatives:
                result = _converted(candidate, alternative)
                if result is not _FAILED:
                    return result
    except _OutOfRange as error:
        raise UserError(f'config.{path}={text}: {error}.') from None
    raise UserError(f'config.{path}={text}: expected {_described(kind)}.')
