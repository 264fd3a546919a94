"""Kinds of config values: whether a value is of a kind and in its range, and what a text means."""

import ast
import dataclasses
import math
import types
import typing
from typing import Any

from mim_jax.errors import UserError

LONGEST = 100  # characters of a value in a sentence


def shown(value: Any, longest: int = LONGEST) -> str:
    """What a person gave, on one line and not too long: a text as it is, another value's repr."""
    text = value if isinstance(value, str) else ' '.join(repr(value).split())
    return text if len(text) <= longest else f'{text[:longest]}…'


def fields(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    """The fields of a config section with their kinds, ranges included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    # Linen modules are dataclasses too: their own bookkeeping fields are not configuration.
    return [
        (field, hints[field.name])
        for field in dataclasses.fields(cls)
        if field.init and field.name not in ('parent', 'name') and not field.metadata.get('context')
    ]


def _alternatives(kind: Any) -> tuple:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.get_args(kind)
    return (kind,)


def described(kind: Any) -> str:
    """A field's kind in words, its range included."""
    texts = [_described(kind)]
    inner = [k for a in _alternatives(kind) for k in (a, *typing.get_args(a))]
    for alternative in inner:
        if typing.get_origin(alternative) is typing.Annotated:
            texts.append(str(typing.get_args(alternative)[1].usual))
    return ', '.join(filter(None, dict.fromkeys(texts)))


def bare(kind: Any) -> Any:
    """A kind without its range."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _described(kind: Any) -> str:
    names = []
    for alternative in map(bare, _alternatives(kind)):
        if alternative is types.NoneType:
            names.append('none')
        elif typing.get_origin(alternative) is tuple:
            inner = (_described(k) for k in typing.get_args(alternative) if k is not Ellipsis)
            names.append(f'a tuple of {" and ".join(dict.fromkeys(inner))}')
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
        same = (a for a in typing.get_args(kind) if type(a) is type(value) and a == value)
        return next(same, _FAILED)  # True is no 1
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
        if abs(value) > 1e300:  # not all of these have a float
            raise _OutOfRange('must be a finite number')
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise _OutOfRange('must be a finite number')
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    return _FAILED


def checked(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`; raises UserError, naming the field `where`, if it is none."""
    try:
        for alternative in _alternatives(kind):
            result = _converted(value, alternative)
            if result is not _FAILED:
                return result
    except _OutOfRange as error:
        raise UserError(f'{where} = {shown(repr(value))}: {error}.') from None
    raise UserError(
        f'{where} = {shown(repr(value))}: expected {_described(kind)}, got {type(value).__name__}.'
    )


def parsed(text: str, kind: Any, path: str) -> Any:
    """The text of a command-line value, read as `kind`."""
    alternatives = _alternatives(kind)
    if text.lower() == 'none' and types.NoneType in alternatives:
        return None
    if text.lower() in ('true', 'false') and bool in alternatives:
        return text.lower() == 'true'
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text  # no literal, or one nested without end
        if text.lower().lstrip('+-') in ('inf', 'infinity', 'nan') and float in alternatives:
            value = float(text)  # told as what it is
    try:
        for candidate in (value, text):
            for alternative in alternatives:
                result = _converted(candidate, alternative)
                if result is not _FAILED:
                    return result
    except _OutOfRange as error:
        raise UserError(f'config.{path}={shown(text)}: {error}.') from None
    raise UserError(f'config.{path}={shown(text)}: expected {_described(kind)}.')
