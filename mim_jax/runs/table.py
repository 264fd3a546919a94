"""Runs as text: a table of several, and what one checkpoint says of its making."""

import datetime
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_jax import integrity, layout, provenance, storage
from mim_jax.errors import UserError
from mim_jax.runs import found
from mim_jax.runs.compared import differences
from mim_jax.runs.found import Run

INDENT = '    '
DIGITS = 16  # of a digest, as many as tell it from others
LINES = 2  # of a run's differences, at most


def table(runs: Sequence[Run], *, width: int) -> str:
    """A row per run, below it how its config differs from those of the others; no line is longer
    than `width`, but for names.
    """
    rows = [('run', 'state', 'step', 'last figures')]
    rows += [(run.name, run.state, _step(run), _figures(run)) for run in runs]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    # The figures of a long name's run go below it.
    widths[0] = min(widths[0], max(24, width - sum(widths[1:]) - 26))
    lines = []
    given = differences([run.config for run in runs])
    for row, run, fields in zip(rows, (None, *runs), ({}, *given), strict=True):
        name, *middle = (f'{cell:<{size}}' for cell, size in zip(row, widths, strict=False))
        if len(name) > widths[0]:
            lines.append(name)
            name = ' ' * widths[0]
        text = '  '.join([name, *middle, row[3]]).rstrip()
        lines.append(text if len(text) <= width else f'{text[: width - 1]}…')
        lines += _wrapped([f'{key}={value}' for key, value in fields.items()], width)
        for note in run.notes if run else ():
            lines += textwrap.wrap(note, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return '\n'.join(lines)


def _step(run: Run) -> str:
    if run.length is None:
        return f'{run.step:,}'
    if isinstance(run.length, int):
        return f'{run.step:,}/{run.length:,}'
    return f'{run.step:,} of {run.length}'


def _figures(run: Run) -> str:
    """The first figure of every evaluator, its headline; the loss where there is none."""
    headlines = {}
    for name in run.figures:
        headlines.setdefault(name.rpartition('/')[0], name)
    loss = headlines.pop('train', None)
    last = max((step for step, _ in run.figures.values()), default=0)
    texts = []
    for name in headlines.values() or [loss] * (loss is not None):
        step, value = run.figures[name]
        when = '' if step == last else f' (step {step:,})'
        texts.append(f'{name.split("/", 1)[1]} {value:.4g}{when}')
    return ', '.join(texts)


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    """Texts in LINES lines, and how many found no place."""
    for kept in range(len(texts), -1, -1):
        more = len(texts) - kept
        shown = [*texts[:kept], f'and {more} more (--json)'] if more else texts
        lines = textwrap.wrap(
            ', '.join(shown),
            width,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_on_hyphens=False,
        )
        if len(lines) <= LINES:
            return lines
    return []


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The same and all figures, as plain values."""
    return [
        {
            'name': run.name,
            'workdir': str(run.workdir),
            'state': run.state,
            'step': run.step,
            'length': run.length,
            'saved_steps': list(run.saved),
            'figures': {n: {'step': s, 'value': v} for n, (s, v) in run.figures.items()},
            'differences': given,
            'notes': list(run.notes),
        }
        for run, given in zip(runs, differences([run.config for run in runs]), strict=True)
    ]


def described(workdir: str | Path, *, step: int | None = None) -> str:
    """What made a checkpoint, that of `step` or the newest: config, code, packages, devices, data
    and weights.

    Raises UserError where there is no such checkpoint, or nothing in it says so.
    """
    saved = layout.saved_steps(workdir)
    if not saved or (step is not None and step not in saved):
        what = f'no checkpoint of step {step}, only of {saved}' if saved else 'no checkpoint'
        raise UserError(f'{workdir}: there is {what}.')
    step = saved[-1] if step is None else step
    folder = layout.checkpoints(workdir) / str(step)
    wrong = integrity.damage(folder)
    if wrong is not None:
        raise UserError(f'{workdir}: the checkpoint of step {step} is damaged: {wrong}.')
    record = provenance.read(folder)
    if record is None:
        raise UserError(
            f'{workdir}: the checkpoint of step {step} does not say what made it: an older version '
            'wrote it.'
        )
    rows = [(workdir, f'step {step} of {record.get("total_steps")}')]
    saved_at = provenance.saved_at(folder)
    if saved_at is not None:
        when = datetime.datetime.fromtimestamp(saved_at, datetime.UTC)
        rows.append(('saved', f'{when:%Y-%m-%d %H:%M:%S} UTC'))
    config = found.read(storage.path(workdir), name='').config
    if not config:
        now = 'config.json cannot be read'
    elif provenance.digest(config) == record.get('config'):
        now = 'that of config.json'
    else:
        now = f'config.json has another now: {layout.CHANGES_FILE}'
    rows.append(('config', f'SHA-256 {str(record.get("config"))[:DIGITS]}… ({now})'))
    devices = _mapping(record, 'devices')
    processes = devices.get('processes')
    shared = f', {processes} processes' if processes != 1 else ''
    rows += [
        ('code', _listed(_mapping(record, 'code'))),
        ('python', record.get('python')),
        ('packages', _listed(_mapping(record, 'packages'))),
        ('devices', f'{devices.get("count")} x {devices.get("kind")}{shared}'),
    ]
    weights = _mapping(config, 'init').get('weights')
    for name, digest in _mapping(record, 'fingerprints').items():
        source = f' ({weights})' if name == 'init' and weights else ''
        rows.append((name, f'SHA-256 {str(digest)[:DIGITS]}…{source}'))
    width = max(len(str(name)) for name, _ in rows[1:])
    lines = [f'{rows[0][0]}, {rows[0][1]}']
    return '\n'.join(lines + [f'{name:<{width}}  {text}' for name, text in rows[1:]])


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record or config, empty where another version wrote something else there."""
    part = record.get(name)
    return part if isinstance(part, Mapping) else {}


def _listed(versions: Mapping[str, Any]) -> str:
    return ', '.join(f'{name} {version}' for name, version in versions.items() if version)
