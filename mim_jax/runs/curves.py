"""Metrics of several runs over their steps, in one picture."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from mim_jax.errors import UserError
from mim_jax.folders import check_folder
from mim_jax.runs.found import Run

# Okabe and Ito's colours without the yellow, which white paper swallows (jfly.uni-koeln.de/color).
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
STYLES = ('-', '--', ':', '-.')
FORMATS = ('.png', '.svg', '.pdf')
COLUMNS = 2
MARKED = 30  # as many points of a curve are told apart by eye


def draw(runs: Sequence[Run], metrics: Sequence[str], out: str | Path) -> None:
    """Writes the picture `out`, a panel per metric and a curve per run that has it.

    Raises UserError for a metric that none of the runs has, and where nothing can be written.
    """
    out = Path(out)
    if out.suffix not in FORMATS:
        raise UserError(f'--out={out}: its name must end in one of {", ".join(FORMATS)}.')
    curves = {metric: {run.name: run.values(metric) for run in runs} for metric in metrics}
    for metric, of_runs in curves.items():
        if not any(of_runs.values()):
            known = sorted({n for run in runs for line in run.metrics for n in line} - {'step'})
            raise UserError(f'--plot={metric}: no run has it; there are {", ".join(known)}.')
    check_folder(out.parent)

    from matplotlib.figure import Figure  # without pyplot, which wants to know about screens

    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    legend = 0.22 * len(runs) + 0.3
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows + legend), dpi=120, layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = {
        run.name: {'color': color, 'linestyle': style}
        for run, (style, color) in zip(
            runs, itertools.cycle(itertools.product(STYLES, COLORS)), strict=False
        )
    }
    handles = {}
    for panel, (metric, of_runs) in zip(panels, curves.items(), strict=False):
        for name, values in of_runs.items():
            if values:
                marker = '.' if len(values) <= MARKED else None
                x, y = list(values), list(values.values())
                (handles[name],) = panel.plot(x, y, marker=marker, label=name, **looks[name])
        panel.set(title=metric, xlabel='step')
        panel.grid(alpha=0.3)
    for panel in panels[len(metrics) :]:
        panel.remove()
    figure.legend(handles.values(), handles.keys(), loc='outside lower left', frameon=False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as error:
        raise UserError(f'--out={out} cannot be written: {error.strerror}.') from error
