"""Runs a table of an ablation with several seeds and prints it as Markdown.

    python -m mim_jax.sweep --table=configs/ablations/NAME.py [--base=configs/NAME.py[:ARGUMENT]]
        [--seeds=3] [--out=runs/NAME] [--metric=eval/knn/top1] [--dry_run]
        [--config.any.field=value ...]

A table is a Python file: its docstring says what is compared, `BASE` is the config of all rows
(`--base` takes another), `ROWS` maps a row's name to the fields that it changes, written as on the
command line of `mim_jax.main` (`config` is a base of this row's own). Every run is one process of
`mim_jax.main` in OUT/ROW/seedN; `--config.…` applies to all of them. Starting again goes on where
it stopped, and `--dry_run` prints the commands instead, for those who have more machines than one:
with the same OUT the table is printed from whatever has finished.
"""

import argparse
import dataclasses
import math
import re
import shlex
import statistics
import sys
from pathlib import Path

from mim_jax import config as configs
from mim_jax import planned, storage
from mim_jax.errors import UserError
from mim_jax.logs import METRICS_FILE


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    try:
        options, assignments = parse(sys.argv[1:] if arguments is None else arguments)
        runs = plan(options, assignments)
        if options.dry_run:
            for run in runs:
                print(shlex.join(['python', *run.command]))
            return 0
        for number, run in enumerate(runs, start=1):
            if result(run, options.metric) is None:
                print(f'[{number}/{len(runs)}] {run.name}, seed {run.seed}: {run.workdir}')
                planned.execute(run)
                _check_result(run, options.metric)
        text = table(runs, options.metric)
        Path(options.out, 'table.md').write_text(text, encoding='utf-8')
        print(text, end='')
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> tuple[argparse.Namespace, tuple[tuple[str, str], ...]]:
    """Options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text`."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.sweep',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--table', required=True, metavar='FILE.py')
    parser.add_argument('--base', metavar='FILE.py[:ARGUMENT]', help="default: the table's BASE")
    parser.add_argument('--seeds', type=int, default=3, help='runs per row (default 3)')
    parser.add_argument('--out', metavar='DIR', help="default: runs/ and the table's name")
    parser.add_argument('--metric', default='eval/knn/top1', help='default eval/knn/top1')
    parser.add_argument('--dry_run', action='store_true', help='print the commands, run nothing')
    options, rest = parser.parse_known_args(arguments)
    if options.seeds < 1:
        parser.error(f'--seeds={options.seeds}: at least 1.')
    return options, tuple(configs.assignments(rest))


def plan(
    options: argparse.Namespace, assignments: tuple[tuple[str, str], ...]
) -> list[planned.Run]:
    """All runs, seed by seed, so that a sweep that is cut short has compared all rows.

    Every row's config is built, so that a mistake in the last row shows before the first run.
    """
    base, rows = read_table(options.table)
    base = options.base or base
    options.out = options.out or str(Path('runs') / Path(options.table).stem)
    storage.check_local(options.out)
    folders = {row: re.sub(r'[^a-z0-9.]+', '_', row.lower()).strip('_') for row in rows}
    if len(set(folders.values())) < len(rows):
        raise UserError(f'--table={options.table}: two rows have names too much alike.')
    bases = {row: changes.pop('config', base) for row, changes in rows.items()}
    fields = {row: (*changes.items(), *assignments) for row, changes in rows.items()}
    given = {name for name, _ in assignments}
    built = {}
    for row in rows:
        twice = given & set(rows[row])
        if twice:
            raise UserError(
                f'--config.{min(twice)} is what row "{row}" of {options.table} sets: leave it to '
                'the table.'
            )
        try:
            built[row] = planned.built(bases[row], fields[row], read=not options.dry_run)
        except UserError as error:
            raise UserError(f'row "{row}" of {options.table}: {error}') from error
    return [
        planned.Run(
            name=row,
            seed=seed,
            base=bases[row],
            assignments=fields[row],
            experiment=dataclasses.replace(built[row][0], seed=seed),
            total_steps=built[row][1],
            workdir=Path(options.out, folder, f'seed{seed}'),
            fingerprints=built[row][2],
        )
        for seed in range(options.seeds)
        for row, folder in folders.items()
    ]


def read_table(path: str) -> tuple[str, dict[str, dict[str, str]]]:
    """(BASE, ROWS) of a table file, ROWS as row name -> field -> text."""
    if not Path(path).is_file():
        raise UserError(f'--table={path}: there is no such file.')
    scope = {'__file__': path}
    try:
        exec(compile(Path(path).read_text(encoding='utf-8'), path, 'exec'), scope)
    except Exception as error:
        raise UserError(f'--table={path} cannot be run: {type(error).__name__}: {error}') from error
    rows, base = scope.get('ROWS'), scope.get('BASE')
    well_formed = isinstance(base, str) and isinstance(rows, dict) and rows
    if not well_formed or not all(isinstance(changes, dict) for changes in rows.values()):
        raise UserError(
            f'--table={path}: it must set BASE (a config file) and ROWS (name: fields).'
        )
    return base, {row: {k: str(v) for k, v in changes.items()} for row, changes in rows.items()}


def result(run: planned.Run, metric: str) -> float | None:
    """The metric at the run's last step; None where the run has not come there.

    Raises UserError where the work directory holds a run of another config or of other weights.
    """
    return planned.figures(run).get(metric)


def _check_result(run: planned.Run, metric: str) -> None:
    if result(run, metric) is None:
        raise UserError(
            f'row "{run.name}", seed {run.seed} ended without {metric}; name a metric that stands '
            f'in {run.workdir / METRICS_FILE}.'
        )


def table(runs: list[planned.Run], metric: str) -> str:
    """Markdown: a row per row, mean and sample standard deviation over seeds, every seed."""
    seeds = sorted({run.seed for run in runs})
    values = {row: {} for row in dict.fromkeys(run.name for run in runs)}
    for run in runs:
        values[run.name][run.seed] = result(run, metric)
    header = ['', f'{metric}, mean ± std', *(f'seed {seed}' for seed in seeds)]
    lines = [header, ['---'] * len(header)]
    for row, by_seed in values.items():
        have = [value for value in by_seed.values() if value is not None]
        mean = statistics.fmean(have) if have else math.nan
        spread = f' ± {statistics.stdev(have):.4f}' if len(have) > 1 else ''
        each = ['' if by_seed[s] is None else f'{by_seed[s]:.4f}' for s in seeds]
        lines.append([row, f'{mean:.4f}{spread}', *each])
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


if __name__ == '__main__':
    sys.exit(main())
