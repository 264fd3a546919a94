"""The campaign of faults: provokes each so many times, and writes the table of the docs.

    python -m tests.campaign [--short] [--only=PART ...] [--out=docs/reliability.md]

A fault is a function in a file of this folder. `--only` takes those whose name has PART; the rows
of the others stay as they are. A trial that fails is told with its number, and tried again by
`--only=PART --first=NUMBER --trials=1`. Status 1: something failed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.campaign import damage, data, kills, pairs, places  # noqa: F401 (they list their faults)
from tests.campaign.faults import FAULTS, tried
from tests.campaign.lab import Lab

BEGIN, END = '<!-- campaign: begin -->', '<!-- campaign: end -->'
HEAD = '| fault | expected | how | result |\n| --- | --- | --- | --- |\n'


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.campaign', description=__doc__)
    parser.add_argument('--short', action='store_true', help='the few trials that CI runs')
    parser.add_argument('--only', action='append', metavar='PART', help='of the name; repeatable')
    parser.add_argument('--seed', type=int, default=0, help='of the moments that are drawn')
    parser.add_argument('--trials', type=int, help='of each fault, instead of its own number')
    parser.add_argument('--first', type=int, default=0, help='number of the first trial')
    parser.add_argument('--out', type=Path, help='a page with the two marks, for the table')
    options = parser.parse_args()
    chosen = [
        fault
        for name, fault in FAULTS.items()
        if not options.only or any(part in name for part in options.only)
    ]
    failures = 0
    with tempfile.TemporaryDirectory(prefix='campaign_') as folder:
        lab = Lab(folder)
        for fault in chosen:
            trials = options.trials or (fault.short if options.short else fault.trials)
            if not trials:
                continue
            result = tried(
                fault, lab, first=options.first, trials=trials, seed=options.seed, say=_say(fault)
            )
            print(f'{fault.name}: {result.text()}; {result.seconds:.0f} s', flush=True)
            failures += len(result.failures)
            if options.out:
                write(options.out, fault, result.text())
    return int(failures > 0)


def _say(fault):
    def say(number, case, failure):
        print(f'{fault.name} [{number}]: {failure or case}', flush=True)

    return say


def write(page, fault, text):
    """Puts the row of a fault into the table of a page, in the order of the list."""
    before, rest = page.read_text(encoding='utf-8').split(BEGIN)
    table, after = rest.split(END)
    rows = {row.split(' | ')[0][2:]: row for row in table.strip().splitlines()[2:]}
    rows[fault.name] = f'| {fault.name} | {fault.expected} | {fault.how} | {text} |'
    table = ''.join(f'{rows[name]}\n' for name in FAULTS if name in rows)
    page.write_text(f'{before}{BEGIN}\n{HEAD}{table}{END}{after}', encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
