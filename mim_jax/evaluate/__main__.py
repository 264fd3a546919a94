"""Evaluates the checkpoints of a run, or the weights of an encoder.

    python -m mim_jax.evaluate --workdir=DIR [--evaluators=knn,linear] [--steps=all]
        [--out=DIR/evaluation] [--config.eval.any.field=value ...]
    python -m mim_jax.evaluate --weights=PATH --config=configs/NAME.py[:ARGUMENT] --out=DIR
        [--evaluators=knn,linear] [--config.data.any.field=value ...]

Writes results.md, results.json and pictures. Nothing in a work directory but its folder
`evaluation` is touched.
"""

import argparse
import sys

from mim_jax import config as configs
from mim_jax.errors import UserError

# What may be another than in the run: which data, and how it is judged.
SECTIONS = ('data', 'eval')


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; what was written is whole', file=sys.stderr)
        return 130
    return 0


def run(arguments: list[str]) -> None:
    """Parses, evaluates and writes. Raises UserError for what the user can mend."""
    options, assignments = parse(arguments)
    from mim_jax import distributed, storage

    distributed.initialize()
    from mim_jax.evaluate import report, subjects

    if options.workdir:
        subject = subjects.of_workdir(options.workdir, assignments, steps=options.steps)
    else:
        subject = subjects.of_weights(options.weights, options.config, assignments)
    if subject.missing:
        print(subject.missing)
    out = storage.path(options.out or storage.path(options.workdir) / 'evaluation')
    results = report.Results.read(out, of=subject.name)
    for step in subject.steps:
        values = subject.evaluate(step)
        results = results.updated(subject.settings, step, values)
        if distributed.is_main():
            results.write(out)
            print(report.one_line(step, values), flush=True)
    try:
        pictures = subject.draw()
    except UserError as error:  # a teacher that is gone, say; the figures stand
        print(f'no pictures of what the objective does: {error}')
        pictures = {}
    if distributed.is_main():
        report.write_pictures(out, results, subject.confusions, pictures, step=subject.steps[-1])
        print(f'\n{results.markdown()}\n{out}')


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text`."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.evaluate',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--workdir', metavar='DIR', help='the run')
    add('--weights', metavar='PATH', help='a weight file, an import folder or a work directory')
    add('--config', metavar='FILE.py[:ARGUMENT]', help='with --weights: its data and evaluators')
    add('--evaluators', metavar='A,B', help="default: the config's eval.evaluators")
    add('--steps', metavar='all|N,M', help='of the checkpoints; default: the newest')
    add('--out', metavar='DIR', help='default: DIR/evaluation of the work directory')
    options, rest = parser.parse_known_args(arguments)
    if bool(options.workdir) == bool(options.weights):
        parser.error('give either --workdir or --weights.')
    if options.weights and not (options.config and options.out):
        parser.error(
            '--weights needs --config, which says on what data, and --out, where to write.'
        )
    if options.workdir and options.config:
        parser.error('--workdir has its own config: change fields by --config.FIELD=VALUE.')
    if options.weights and options.steps:
        parser.error('--steps needs --workdir, which has checkpoints.')
    assignments = configs.assignments(rest)
    for name, value in assignments:
        if name.split('.')[0] not in SECTIONS:
            raise UserError(
                f'--config.{name}={value}: an evaluation changes nothing but the sections '
                f'{" and ".join(SECTIONS)}.'
            )
    if options.evaluators:
        names = tuple(name for name in options.evaluators.split(',') if name)
        assignments.append(('eval.evaluators', repr(names)))
    return options, assignments


if __name__ == '__main__':
    sys.exit(main())
