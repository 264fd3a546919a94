"""Figures of an evaluation as JSON, Markdown and pictures."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax import storage
from mim_jax.errors import UserError

RESULTS = 'results.json'
# What is drawn over checkpoints: shares from 0 to 1.
CURVES = ('top1', 'miou')


@dataclasses.dataclass(frozen=True)
class Results:
    """The figures of a run or of weights, of every evaluation so far.

    of: its name. evaluators: name -> {'settings': …, 'steps': {step: {metric: value}}}; steps of
    other settings than the last are not kept.
    """

    of: str
    evaluators: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, *, of: str) -> 'Results':
        """What is in a folder already.

        Raises UserError where the file there is none of these, or of something else.
        """
        path = folder / RESULTS
        if not path.exists():
            return cls(of, {})
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
            before, evaluators = found['of'], dict(found['evaluators'])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path} is no file of mim_jax.evaluate: remove it, or give another --out.'
            ) from error
        # A work directory may move, with the folder in it.
        own = storage.path(of).resolve()
        inside = own in folder.resolve().parents
        if not inside and storage.path(before).resolve() != own:
            raise UserError(f'{path} is of {before}, not of {of}: give another --out.')
        return cls(of, evaluators)

    def updated(
        self, settings: Mapping[str, Any], step: int, values: Mapping[str, float]
    ) -> 'Results':
        """With the values by 'EVALUATOR/metric' of a step, made under `settings` by evaluator."""
        new = dict(self.evaluators)
        for name, given in settings.items():
            metrics = {k.split('/', 1)[1]: v for k, v in values.items() if k.startswith(f'{name}/')}
            if not metrics:
                continue
            before = new.get(name, {})
            steps = before['steps'] if before.get('settings') == given else {}
            steps = {**steps, str(step): metrics}
            steps = dict(sorted(steps.items(), key=lambda item: int(item[0])))
            new[name] = {'settings': given, 'steps': steps}
        return Results(self.of, new)

    @property
    def steps(self) -> list[int]:
        """All that any evaluator has seen."""
        return sorted({int(s) for entry in self.evaluators.values() for s in entry['steps']})

    def values(self, evaluator: str, metric: str) -> dict[int, float]:
        """A metric over steps."""
        steps = self.evaluators[evaluator]['steps']
        return {int(step): v[metric] for step, v in steps.items() if metric in v}

    def markdown(self) -> str:
        """A row per figure, a column per step."""
        header = [self.of, *(f'step {step}' for step in self.steps)]
        lines = [header, ['---'] * len(header)]
        for name, entry in self.evaluators.items():
            metrics = dict.fromkeys(m for values in entry['steps'].values() for m in values)
            for metric in metrics:
                found = self.values(name, metric)
                cells = [f'{found[s]:.4g}' if s in found else '' for s in self.steps]
                lines.append([f'{name}/{metric}', *cells])
        return ''.join(f'| {" | ".join(line)} |\n' for line in lines)

    def write(self, folder: Path) -> None:
        """results.json and results.md, each whole or not at all. Raises UserError where that is
        not possible.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + '\n'
        try:
            storage.make_folder(folder)
            for name, content in (RESULTS, text), ('results.md', self.markdown()):
                storage.write_whole(folder / name, content)
        except OSError as error:
            raise UserError(f'{folder} cannot be written: {error.strerror}.') from error


def one_line(step: int, values: Mapping[str, float]) -> str:
    """A step's figures for the terminal."""
    return '  '.join([f'step {step}:', *(f'{name} {value:.4g}' for name, value in values.items())])


def write_pictures(
    folder: Path,
    results: Results,
    confusions: Mapping[str, np.ndarray],
    sheets: Mapping[str, np.ndarray],
    *,
    step: int,
) -> None:
    """The objective's sheets, confusion matrices, and figures over steps where there are some."""
    from mim_jax.visualize import write

    write(folder, sheets, step=step)
    for name, confusion in confusions.items():
        _confusion(folder / f'confusion_{name}.png', confusion, title=f'{name}, step {step}')
    curves = {
        f'{name}/{metric}': results.values(name, metric)
        for name in results.evaluators
        for metric in CURVES
        if len(results.values(name, metric)) > 1
    }
    if curves:
        _curves(folder / 'curves.png', curves, title=results.of)


def _confusion(path: Path, confusion: np.ndarray, *, title: str) -> None:
    """Shares of every true class, by predicted class."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(5.5, 5.0)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap='viridis', interpolation='nearest')
    figure.colorbar(image, label='share of the true class')
    axes.set(xlabel='predicted class', ylabel='true class', title=title)
    if len(confusion) <= 20:
        axes.set(xticks=range(len(confusion)), yticks=range(len(confusion)))
    _save(figure, path)


def _curves(path: Path, curves: Mapping[str, Mapping[int, float]], *, title: str) -> None:
    figure, axes = _figure(6.5, 4.0)
    for name, values in curves.items():
        axes.plot(list(values), list(values.values()), marker='o', label=name)
    axes.set(xlabel='step', ylabel='share', title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with path.open('wb') as file:
        figure.savefig(file)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot, which wants to know about screens

    figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
    return figure, figure.subplots()
