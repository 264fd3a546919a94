"""Trains every method of the registry for one budget, and writes one table.

    python -m mim_jax.zoo [--only=NAME,NAME] [--steps=300] [--seed=0] [--size=embedded]
        [--workdir=runs/zoo] [--out=docs/zoo.md] [--machine=TEXT] [--config.any.field=value ...]

Every run is one process of `mim_jax.main` in WORKDIR/NAME, one after another; starting again goes
on where it stopped. One that fails does not stop the others: the page says so, and the exit status
is 1. `--config.…` applies to all runs.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from mim_jax import config as configs
from mim_jax import layout, planned, storage, work_directory
from mim_jax.errors import UserError
from mim_jax.folders import check_folder
from mim_jax.zoo import page
from mim_jax.zoo.entries import entries, make_run, with_needed

STEPS = 300
PEAKS = 'peaks.json'  # bytes by name: what a run's process held at most


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 where a method failed, or 2 for a mistake
    told in one sentence.
    """
    try:
        options, assignments = parse(sys.argv[1:] if arguments is None else arguments)
        return run(options, assignments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        return 130


def parse(arguments: list[str]) -> tuple[argparse.Namespace, tuple[tuple[str, str], ...]]:
    """Options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text`."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.zoo',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--only', metavar='NAME,NAME', help='run these alone, and what they learn from')
    add('--steps', type=int, default=STEPS, help=f'of each run (default {STEPS})')
    add('--seed', type=int, default=0, help='of each run (default 0)')
    add('--size', default='embedded', help='argument of the configs (default embedded)')
    add('--workdir', metavar='DIR', default='runs/zoo', help='default runs/zoo')
    add('--out', metavar='FILE.md', default='docs/zoo.md', help='default docs/zoo.md')
    add('--machine', metavar='TEXT', help='what the page says of it (default: what is found)')
    options, rest = parser.parse_known_args(arguments)
    if options.steps < 2:
        parser.error(f'--steps={options.steps}: at least 2, for the first is not timed.')
    given = tuple(configs.assignments(rest))
    if 'seed' in dict(given):
        raise UserError('config.seed is that of all runs here: say --seed=N.')
    return options, given


def run(options: argparse.Namespace, assignments: tuple[tuple[str, str], ...]) -> int:
    """Runs what is not finished and writes the page; returns the exit status."""
    storage.check_local(options.workdir)
    workdir, out = Path(options.workdir), Path(options.out)
    check_folder(workdir)
    check_folder(out.parent)
    if out.is_dir():
        raise UserError(f'--out={out} is a folder: name a file in it.')
    known = entries(options.size)
    names = list(known) if options.only is None else options.only.split(',')
    chosen = with_needed(names, known)
    places = {name: place for place, name in enumerate((n for n in known if n in chosen), start=1)}
    rows, failed, absent = [], {}, []
    for entry in known.values():
        name = entry.name
        if name not in chosen and not (workdir / name / layout.CONFIG_FILE).exists():
            absent.append(name)
            continue
        try:
            lost = [need for need in entry.needs.values() if need in failed]
            if lost:
                raise UserError(f'it learns from {lost[0]}, which failed.')
            planned_run = make_run(
                entry,
                steps=options.steps,
                seed=options.seed,
                workdir=workdir,
                assignments=assignments,
            )
            check_budget(planned_run)
            if not planned.finished(planned_run) and name in chosen:
                print(f'[{places[name]}/{len(places)}] {name}', flush=True)
                _add_peak(workdir, name, planned.execute(planned_run))
            if not planned.finished(planned_run):
                raise UserError('it ended before its last step or evaluation (see above).')
            rows.append(page.row(planned_run, peak=_peaks(workdir).get(name)))
        except UserError as error:
            if name in chosen:
                print(f'{name} failed: {error}', file=sys.stderr, flush=True)
                failed[name] = str(error)
            else:  # of another budget, for one: it is none of this table
                absent.append(name)
    if not rows:
        raise UserError(f'no run ended as it should, so {out} is not written; see above.')
    out.parent.mkdir(parents=True, exist_ok=True)
    page.write(
        out,
        rows,
        failed=failed,
        absent=absent,
        command=command(options, assignments),
        size=options.size,
        machine=options.machine,
        default_steps=STEPS,
    )
    print(out)
    return 1 if failed else 0


def check_budget(planned_run: planned.Run) -> None:
    """Raises UserError where a work directory holds a run that is not comparable: of another
    config, or one that was judged or logged otherwise.
    """
    workdir, run = planned_run.workdir, planned_run.experiment
    if not (workdir / layout.CONFIG_FILE).exists():
        return
    saved = work_directory.completed(workdir, run)
    found = configs.differences(*map(work_directory.as_dict, (saved, run)))
    others = [
        line
        for line in found
        if re.match(r'eval\.|log\.every_', line)
        or not any(re.match(x, line) for x in work_directory.RESUMABLE)
    ]
    if others:
        raise UserError(
            f'{workdir} holds a run of another budget ({"; ".join(others)}): set this back, choose '
            'another --workdir, or remove it to run it again.'
        )


def command(options: argparse.Namespace, assignments: tuple[tuple[str, str], ...]) -> str:
    """The command line that makes the same figures, wherever its files lie."""
    defaults = {'steps': STEPS, 'seed': 0, 'size': 'embedded'}
    words = [
        f'--{k}={getattr(options, k)}' for k, v in defaults.items() if getattr(options, k) != v
    ]
    words += [f'--config.{name}={value}' for name, value in assignments]
    return shlex.join(['python', '-m', 'mim_jax.zoo', *words])


def _peaks(workdir: Path) -> dict[str, int]:
    path = workdir / PEAKS
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def _add_peak(workdir: Path, name: str, peak: int) -> None:
    """Keeps the most of all processes that a run took."""
    peaks = _peaks(workdir)
    peaks[name] = max(peak, peaks.get(name, 0))
    storage.write_whole(workdir / PEAKS, json.dumps(peaks, indent=2) + '\n')


if __name__ == '__main__':
    sys.exit(main())
