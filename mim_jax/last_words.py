"""The line in which a run that is done says what came of it."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_jax.terminal import COLUMNS


def last_words(lines: Sequence[Mapping[str, Any]], *, total: int, workdir: str | Path) -> str:
    """Of every evaluator the headline (its first figure, higher being better) at the end, at its
    best and at the start; the last loss; and where everything is.

    lines: those of metrics.jsonl.
    """
    figures = []
    for name in _headlines(lines, total):
        seen = {line['step']: line[name] for line in lines if line.get(name) is not None}
        best = max(seen, key=seen.get)
        others = [f'best {seen[best]:.4g} at step {best}'] if seen[best] > seen[total] else []
        others += [f'at first {seen[0]:.4g}'] if 0 in seen and total else []
        beside = f' ({", ".join(others)})' if others else ''
        figures.append(f'{name.removeprefix("eval/")} {seen[total]:.4g}{beside}')
    losses = [line['train/loss'] for line in lines if line.get('train/loss') is not None]
    figures += [f'loss {losses[-1]:.4g}'] if losses else []
    said = f'done: {", ".join([*figures, f"all in {workdir}"])}'
    # A path is not broken, it may be copied.
    return textwrap.fill(
        said, COLUMNS, subsequent_indent='  ', break_long_words=False, break_on_hyphens=False
    )


def _headlines(lines: Sequence[Mapping[str, Any]], total: int) -> list[str]:
    """The first figure of every evaluator of the last step."""
    found = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith('eval/') and line['step'] == total and value is not None:
                found.setdefault(name.split('/')[1], name)
    return list(found.values())
