"""What a pre-training is worth: pre-trains, evaluates, and trains every task twice.

    python -m mim_jax.downstream --pretraining=configs/quickstart.py
        --tasks=configs/finetune.py:embedded,configs/segmentation.py:embedded
        [--evaluators=knn,linear,attentive,fewshot] [--seeds=1] [--out=runs/downstream] [--dry_run]
        [--config.any.field=value ...] [--STAGE.any.field=value ...]

Every task is trained from the pre-trained encoder and from scratch, with the same config but for
`init.weights`; the frozen features are evaluated before and after pre-training. One table says it
all: OUT/results.md and results.json. Every run is one process of `mim_jax.main`; starting again
goes on where it stopped. `--config.…` applies to all runs, `--pretraining.…` and
`--finetune_embedded.…` (the name of a task's config) to those of one stage.
"""

import argparse
import dataclasses
import json
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mim_jax import config as configs
from mim_jax import planned, storage
from mim_jax.errors import UserError
from mim_jax.main import default_workdir

PRETRAINING = 'pretraining'
# What a table has of an evaluator's figures: accuracies and mean intersection over union.
HEADLINES = re.compile(r'eval/(\w+/(top1(_\d+shot)?|miou))')


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of every seed, in the order in which they are run.

    tasks: name -> (with pre-training, from scratch), by seed.
    """

    pretraining: list[planned.Run]
    tasks: dict[str, list[tuple[planned.Run, planned.Run]]]

    @property
    def runs(self) -> list[planned.Run]:
        """Seed by seed, so that a study that is cut short has compared everything."""
        found = []
        for seed, run in enumerate(self.pretraining):
            found += [run, *(run for pairs in self.tasks.values() for run in pairs[seed])]
        return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    try:
        options, assignments = parse(sys.argv[1:] if arguments is None else arguments)
        plan = make_plan(options, assignments)
        if options.dry_run:
            for run in plan.runs:
                print(shlex.join(['python', *run.command]))
            return 0
        for number, run in enumerate(plan.runs, start=1):
            run = fingerprinted(run)
            if not planned.finished(run):
                print(f'[{number}/{len(plan.runs)}] {run.name}, seed {run.seed}: {run.workdir}')
                planned.execute(run)
                check_result(run)
        found = compare(plan)
        out = Path(options.out)
        (out / 'results.json').write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
        text = table(found)
        (out / 'results.md').write_text(text, encoding='utf-8')
        print(f'\n{text}', end='')
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    return 0


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, list[tuple[str, str]]]]:
    """Options, and the ("a.b.c", "text") pairs by stage, those for all runs under 'config'."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.downstream',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--pretraining', required=True, metavar='FILE.py[:ARGUMENT]')
    add('--tasks', required=True, metavar='A.py,B.py:ARGUMENT', help='configs with commas')
    add('--evaluators', default='knn,linear,attentive,fewshot', help='of the frozen features')
    add('--seeds', type=int, default=1, help='how often all is run (default 1)')
    add('--out', metavar='DIR', default='runs/downstream', help='default runs/downstream')
    add('--dry_run', action='store_true', help='print the commands, run nothing')
    options, rest = parser.parse_known_args(arguments)
    if options.seeds < 1:
        parser.error(f'--seeds={options.seeds}: at least 1.')
    specs = [spec for spec in options.tasks.split(',') if spec]
    options.tasks = {stage(spec): spec for spec in specs}
    if not specs:
        parser.error('--tasks names no config.')
    if len({*options.tasks, 'config', PRETRAINING}) < len(specs) + 2:
        parser.error(f'--tasks={",".join(specs)}: two stages would have one name; copy a config.')
    by_stage = {name: [] for name in ('config', PRETRAINING, *options.tasks)}
    for text in rest:
        name = text.removeprefix('--').partition('.')[0]
        if name not in by_stage or '=' not in text:
            forms = ', '.join(f'--{name}.FIELD=VALUE' for name in by_stage)
            raise UserError(f'{text}: fields of the runs are set by {forms}.')
        by_stage[name] += configs.assignments([text], prefix=f'--{name}.')
    return options, by_stage


def stage(spec: str) -> str:
    """finetune_embedded for configs/finetune.py:embedded."""
    return default_workdir(spec).name


def make_plan(
    options: argparse.Namespace, assignments: Mapping[str, list[tuple[str, str]]]
) -> Plan:
    """All runs; every config is built, so that a mistake in the last one shows before the first
    run.
    """
    storage.check_local(options.out)
    out = Path(options.out)
    names = tuple(name for name in options.evaluators.split(',') if name)
    shared = assignments['config']

    def runs(name: str, spec: str, place: Path, fields: Callable[[int], list]) -> list[planned.Run]:
        made = []
        for seed in range(options.seeds):
            given = (*shared, *assignments[place.parts[0]], *fields(seed))
            try:
                # What is pre-trained may not be there yet: `start`.
                run, steps, found = planned.built(
                    spec, given, read=not options.dry_run, start=False
                )
            except UserError as error:
                raise UserError(f'{spec}: {error}') from error
            run = dataclasses.replace(run, seed=seed)
            workdir = out / place / f'seed{seed}'
            made.append(planned.Run(name, seed, spec, given, run, steps, workdir, found))
        return made

    # At the start and at the end alone: that is what is compared.
    evaluated = [(f'eval.every_{unit}', 'none') for unit in configs.UNITS]
    evaluated.append(('eval.evaluators', repr(names)))
    pretraining = runs(PRETRAINING, options.pretraining, Path(PRETRAINING), lambda _: evaluated)

    def weights(seed: int) -> list:
        return [('init.weights', str(out / PRETRAINING / f'seed{seed}'))]

    def no_weights(seed: int) -> list:
        return [(f'init.{field}', 'none') for field in ('weights', 'step', 'average')]

    tasks = {}
    for name, spec in options.tasks.items():
        pretrained = runs(f'{name}, pre-trained', spec, Path(name, 'pretrained'), weights)
        scratch = runs(f'{name}, from scratch', spec, Path(name, 'scratch'), no_weights)
        tasks[name] = list(zip(pretrained, scratch, strict=True))
    return Plan(pretraining, tasks)


def fingerprinted(run: planned.Run) -> planned.Run:
    """A run that knows the weights from which it starts, once they are there: results of earlier
    ones are not taken for its own.
    """
    if run.experiment.init.weights is None:
        return run
    found = planned.built(run.base, run.assignments, read=True)[2]
    return dataclasses.replace(run, fingerprints=found)


def check_result(run: planned.Run) -> None:
    """Raises UserError where a run that was executed did not end, or has none of the HEADLINES."""
    if not planned.finished(run):
        raise UserError(
            f'"{run.name}", seed {run.seed} ended before its last step; start the same command '
            'again to go on.'
        )
    if not any(map(HEADLINES.fullmatch, planned.figures(run))):
        raise UserError(
            f'"{run.name}", seed {run.seed} has no accuracy or mIoU among its figures: name '
            'evaluators that fit its data.'
        )


def compare(plan: Plan) -> dict[str, dict[str, list[float]]]:
    """'frozen features: knn/top1' -> {'without': by seed, 'with': by seed} pre-training."""
    found = {}

    def add(name: str, without: Mapping[str, float], with_: Mapping[str, float]) -> None:
        metrics = [m for m in map(HEADLINES.fullmatch, with_) if m and m.group(0) in without]
        for metric in metrics:
            entry = found.setdefault(f'{name}: {metric.group(1)}', {'without': [], 'with': []})
            entry['without'].append(without[metric.group(0)])
            entry['with'].append(with_[metric.group(0)])

    for run in plan.pretraining:
        add('frozen features', planned.figures(run, step=0), planned.figures(run))
    for name, pairs in plan.tasks.items():
        for pretrained, scratch in pairs:
            add(name, planned.figures(scratch), planned.figures(pretrained))
    return found


def table(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Markdown, in per cent: mean, and with several seeds the sample deviation."""
    header = ['%', 'without pre-training', 'with', 'difference']
    lines = [header, ['---'] * len(header)]
    for name, values in found.items():
        gains = [b - a for a, b in zip(values['without'], values['with'], strict=True)]
        cells = [_mean(values['without']), _mean(values['with']), _mean(gains, sign='+')]
        lines.append([name, *cells])
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _mean(values: list[float], *, sign: str = '') -> str:
    text = f'{100 * statistics.fmean(values):{sign}.1f}'
    return text + (f' ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else '')


if __name__ == '__main__':
    sys.exit(main())
