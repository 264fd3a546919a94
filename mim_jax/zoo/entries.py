"""The methods of the zoo, the runs that they learn from, and the budget that all have."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mim_jax import config as configs
from mim_jax import planned
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS
from mim_jax.main import default_workdir
from mim_jax.objectives import OBJECTIVES

CONFIGS = Path('configs')
IMAGES = {'max_train': 4096, 'max_test': 2048}  # that the features are judged by
# Evaluation at the start and the end alone, and nothing that takes time but training.
BUDGET = (
    ('data.batch_size', '64'),
    ('eval.evaluators', "('knn', 'linear', 'health')"),
    *((f'eval.every_{unit}', 'none') for unit in configs.UNITS),
    *(
        (f'eval.{name}.{split}', str(n))
        for name in ('knn', 'linear')
        for split, n in IMAGES.items()
    ),
    ('eval.health.max_train', str(IMAGES['max_train'])),
    *((f'checkpoint.every_{unit}', 'none') for unit in configs.UNITS),
    ('log.every_steps', '10'),
    *((f'log.pictures_every_{unit}', 'none') for unit in configs.UNITS),
    ('log.num_pictures', '1'),
    ('log.health', 'false'),
    ('log.tensorboard', 'false'),
    ('log.progress', 'false'),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method, or a run that one learns from: its config's name, the config at the zoo's size, and
    the entries whose runs it reads, by the fields that name them.
    """

    name: str
    spec: str
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)


def entries(size: str) -> dict[str, Entry]:
    """All methods of the registry by name, each behind those that it needs."""
    found: dict[str, Entry] = {}

    def add(spec: str) -> str:
        name = default_workdir(spec).name.removesuffix(f'_{size}')
        if name not in found:
            needs = {field: add(other) for field, other in _runs_read(spec, size)}
            found[name] = Entry(name, spec, needs)
        return name

    for name in OBJECTIVES:
        add(f'{CONFIGS / name}.py:{size}')
    return found


def with_needed(names: list[str], known: Mapping[str, Entry]) -> set[str]:
    """The names and those of all that they need. Raises UserError for one that is not known."""
    for name in names:
        if name not in known:
            raise UserError(
                f'--only={name}: there is no such method; there are {", ".join(known)}.'
            )
    found, new = set(), set(names)
    while new:
        found |= new
        new = {need for name in new for need in known[name].needs.values()} - found
    return found


def make_run(
    entry: Entry,
    *,
    steps: int,
    seed: int,
    workdir: Path,
    assignments: tuple[tuple[str, str], ...] = (),
) -> planned.Run:
    """The run of an entry, `steps` long and in WORKDIR/NAME; `assignments` come after the budget.

    Raises UserError where the config cannot be built, or what it reads is not there.
    """
    needed = ((field, str(workdir / name)) for field, name in entry.needs.items())
    given = (*BUDGET, ('train.total_steps', str(steps)), *assignments, *needed)
    run, total, found = planned.built(entry.spec, given, read=True)
    run = dataclasses.replace(run, seed=seed)
    return planned.Run(entry.name, seed, entry.spec, given, run, total, workdir / entry.name, found)


def weights(section: Any, path: str) -> Iterator[tuple[str, str]]:
    """(field, path of a file or folder) of all weights that a section of a config names."""
    for key, value in section.items():
        if hasattr(value, 'items'):
            yield from weights(value, f'{path}.{key}')
        elif key == 'weights' and value:
            yield f'{path}.{key}', value


def learns_from_labels(objective: Any) -> bool:
    """Whether a method itself predicts what a judge among the evaluators compares with labels."""
    judged = {judge.judges for judge in EVALUATORS.values() if hasattr(judge, 'judges')}
    return any(hasattr(objective, name) for name in judged)


def _runs_read(spec: str, size: str) -> Iterator[tuple[str, str]]:
    """(field, config) of all weights in a config's objective that are the run of another config."""
    try:
        config = configs.load(spec)
    except UserError:  # no such size, for one: said where the run is made
        return
    for field, path in weights(config.objective, 'objective'):
        name = Path(path).name
        for other in (
            f'{CONFIGS / name.removesuffix(f"_{size}")}.py:{size}',
            f'{CONFIGS / name}.py',
        ):
            if Path(path) == default_workdir(other) and Path(other.partition(':')[0]).is_file():
                yield field, other
