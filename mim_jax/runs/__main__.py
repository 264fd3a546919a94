"""Runs beside each other.

    python -m mim_jax.runs [DIR ...] [--json]
    python -m mim_jax.runs [DIR ...] --plot=train/loss,eval/knn/top1 --out=FILE.png
    python -m mim_jax.runs --describe=DIR [--step=N]

Lists the work directories in and below DIR (default: runs): state, step, last figures, and in what
their configs differ. `--plot` draws metrics of all of them into one picture; `--describe` says what
made a checkpoint: config, code, packages, devices, data, weights.
"""

import argparse
import json
import os
import shutil
import sys

from mim_jax.errors import UserError
from mim_jax.runs import curves, found, table


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.describe:
            print(table.described(options.describe, step=options.step))
            return 0
        runs = found.find(options.folders)
        if options.plot:
            curves.draw(runs, options.plot.split(','), options.out)
            print(f'wrote {options.out}')
        elif options.json:
            print(json.dumps(table.as_json(runs), indent=2))
        else:
            print(table.table(runs, width=shutil.get_terminal_size().columns))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.runs',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('folders', nargs='*', metavar='DIR', default=['runs'], help='default: runs')
    add('--json', action='store_true', help='all of it, for programs')
    add('--plot', metavar='METRIC,METRIC', help='names of metrics.jsonl')
    add('--out', metavar='FILE.png', help='with --plot: where to')
    add('--describe', metavar='DIR', help='what made its newest checkpoint')
    add('--step', type=int, metavar='N', help='with --describe: that of this step')
    options = parser.parse_args(arguments)
    if bool(options.plot) != bool(options.out):
        parser.error('--plot=METRIC,METRIC and --out=FILE.png go together.')
    if options.step is not None and not options.describe:
        parser.error('--step needs --describe.')
    return options


if __name__ == '__main__':
    sys.exit(main())
