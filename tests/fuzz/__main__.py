"""Bad input by the thousand: trials, cases and failures of every subject.

    python -m tests.fuzz [--cases=10000] [--first=0] [SUBJECT ...]

The cases are shared out among the subjects by what they cost. Exit status 1 where any failed; a
failure's number
runs it alone: `--first=NUMBER --cases=1 SUBJECT`.
"""

import argparse
import os
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def main():
    from tests.fuzz import SHARES, SUBJECTS
    from tests.fuzz.campaign import campaign

    parser = argparse.ArgumentParser(prog='python -m tests.fuzz')
    parser.add_argument('subjects', nargs='*', metavar='SUBJECT', help=', '.join(SUBJECTS))
    parser.add_argument('--cases', type=int, default=500, help='of all subjects together')
    parser.add_argument('--first', type=int, default=0, help='number of the first case of each')
    options = parser.parse_args()
    names = options.subjects or list(SUBJECTS)
    if unknown := {*names} - {*SUBJECTS}:
        parser.error(f'no subject {", ".join(unknown)}; there are {", ".join(SUBJECTS)}')
    of_all = sum(SHARES[name] for name in names)
    reports = []
    for name in names:
        cases = max(1, options.cases * SHARES[name] // of_all)
        reports.append(campaign(name, SUBJECTS[name], cases=cases, first=options.first))
        print(*reports[-1].failures, reports[-1], sep='\n', flush=True)
    failed = sum(len(report.failures) for report in reports)
    total = sum(report.outcomes.total() for report in reports) + failed
    print(f'{len(reports)} subjects, {total} cases, {failed} failures')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
