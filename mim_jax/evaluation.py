"""The evaluators of a run, and what they are fed: the encoder's features of sets of images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mim_jax import data, sharding
from mim_jax.encoding import Encoding, parts_of, views_of
from mim_jax.errors import UserError
from mim_jax.evaluators import (
    Evaluator,
    EvenlySpaced,
    Features,
    Judge,
    Judged,
    Part,
    pooled,
    recipes,
)
from mim_jax.program import Program


class Evaluation:
    """Runs the evaluators of the config section `eval` on the variables of a program.

    `missing` says which of them are left out, where the data has no labels or no evaluation split;
    otherwise it is None. `views` are the objective's as they are drawn, of which evaluators of
    features see `images` alone. `confusions` are the matrices [true class, predicted class] of the
    last `run`, by evaluator.
    """

    def __init__(self, program: Program, source: data.Source):
        self._program = program
        # An image that cannot be read takes no part; however many they are, the run goes on.
        self._config = dataclasses.replace(program.run.data, max_corrupt_share=1.0)
        self._sources = {'train': source}
        self.views = data.eval_views(self._config, program.views)
        self._num_classes = data.num_classes(source.fields)
        evaluators, self.missing = _possible(
            {name: getattr(program.run.eval, name) for name in program.run.eval.evaluators},
            labels=self._num_classes is not None,
            test=self._config.eval_split is not None,
        )
        self._all = evaluators
        self._judges = {name: e for name, e in evaluators.items() if hasattr(e, 'judges')}
        self._evaluators = {n: e for n, e in evaluators.items() if n not in self._judges}
        self._compiled_by_judges = {}
        self.confusions: dict[str, np.ndarray] = {}
        if evaluators:
            sharding.check_batch(self._batch_size, program.mesh, field='eval.batch_size')
            self._check_average()
        if self._evaluators:
            self._encoding = Encoding(program, self._evaluators, batch_size=self._batch_size)
        for name, judge in self._judges.items():
            _check_judge(name, judge, program.objective)
        if self._config.eval_split is not None and any(
            evaluator.test != 'unused' for evaluator in evaluators.values()
        ):
            self._sources['test'] = data.make_source(self._config, split=self._config.eval_split)
            self._check_labels()
        for name, evaluator in self._evaluators.items():
            self._check_memory(name, evaluator)

    @property
    def evaluators(self) -> tuple[str, ...]:
        """The names of those that are run."""
        return tuple(self._all)

    @property
    def judges(self) -> bool:
        """Whether any looks at what the objective predicts, which may need its frozen networks."""
        return bool(self._judges)

    def run(
        self, variables: dict[str, Any], *, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """All evaluators' figures, as {'eval/knn/top1': …}. `check` is called between batches and
        evaluators; what it raises ends the evaluation.
        """
        run = self._program.run
        if self._all and run.eval.use_ema:
            variables = {**variables, 'params': {**variables['params'], **variables['ema']}}

        @functools.cache
        def encoded(split: str, count: int, views: int) -> dict[Part, Features]:
            """Each set of images is encoded once, whoever asks for it."""
            parts = {
                part
                for other in self._evaluators.values()
                if (source := self._source(other, split)) is not None
                and (len(source), views_of(other)) == (count, views)
                for part in parts_of(other)
            }
            source = EvenlySpaced(self._sources[split], count)
            return self._encoding.collect(variables, source, parts=parts, views=views, check=check)

        def features(evaluator: Evaluator, split: str) -> Features | None:
            source = self._source(evaluator, split)
            if source is None:
                return None
            parts = encoded(split, len(source), views_of(evaluator))
            return pooled(parts, recipes(evaluator))

        values = {}
        for name, evaluator in self._all.items():
            check()
            if name in self._judges:
                results = evaluator.judge(self._judged(evaluator, variables, check))
            else:
                results = evaluator.run(
                    features(evaluator, 'train'),
                    features(evaluator, 'test'),
                    num_classes=self._num_classes,
                )
            for metric, value in results:
                if metric == 'confusion':
                    self.confusions[name] = value
                else:
                    values[f'eval/{name}/{metric}'] = value
        return values

    def sample(self, count: int) -> dict[str, np.ndarray]:
        """Up to `count` items in `views`, for pictures: of the evaluation split if it is read."""
        source = EvenlySpaced(self._sources.get('test', self._sources['train']), count)
        batches = data.eval_batches(source, self._config, views=self.views, batch_size=len(source))
        return next(iter(batches))

    def _judged(self, judge: Judge, variables: dict[str, Any], check: Callable[[], None]) -> Judged:
        """What a judge is given."""
        return Judged(
            objective=self._program.objective,
            variables=variables,
            mesh=self._program.mesh,
            data=self._config,
            views=self.views,
            source=self._source(judge, 'test'),
            batch_size=self._batch_size,
            num_classes=self._num_classes,
            compiled=self._compiled_by_judges,
            check=check,
        )

    def _check_average(self) -> None:
        """Raises UserError where the average of the encoder is asked for and there is none."""
        if not self._program.run.eval.use_ema:
            return
        variables = self._program.abstract_state.variables
        frozen = self._program.run.optimizer.frozen
        needed = ['encoder'] if self._evaluators else []
        needed += [part for part in variables['params'] if self._judges and part not in frozen]
        if not set(needed) <= {*variables.get('ema', {}), *frozen}:
            raise UserError(
                f'config.eval.use_ema = True needs an average of the {" and the ".join(needed)}; '
                'set config.train.ema.decay (and parts, if given, to hold these).'
            )
        if self._judges and 'state' in variables:
            raise UserError(
                'config.eval.use_ema = True: this objective has batch norms, whose averages are '
                'those of the parameters and not of their average; set it to False.'
            )

    def _check_memory(self, name: str, evaluator: Evaluator) -> None:
        """Raises UserError where an evaluator that says how much memory it may take needs more."""
        limit = getattr(evaluator, 'max_gigabytes', None)
        sources = [self._source(evaluator, split) for split in ('train', 'test')]
        count = sum(len(source) for source in sources if source is not None)
        needed = count * self._encoding.row_bytes(evaluator) / 1e9
        if limit is not None and needed > limit:
            raise UserError(
                f'config.eval.{name} would keep {needed:.3g} GB of features of {count} images on '
                f'every host, more than max_gigabytes = {limit:g} allows: lower max_train and '
                f'max_test to {int(limit / needed * count)} together, or raise it.'
            )

    def _check_labels(self) -> None:
        """Raises UserError where the evaluation split has other labels than the training split."""
        found = data.num_classes(self._sources['test'].fields)
        names = [n for n, e in self._all.items() if e.labels and e.test != 'unused']
        if names and found != self._num_classes:
            has = 'no labels' if found is None else f'{found} classes'
            raise UserError(
                f'config.data.eval_split = {self._config.eval_split!r} has {has}, the training '
                f'split {self._num_classes} classes, so that {", ".join(names)} cannot compare '
                'them; give both the same classes, or set eval_split to none.'
            )

    @property
    def _batch_size(self) -> int:
        return self._program.run.eval.batch_size or self._config.batch_size

    def _source(self, evaluator: Evaluator | Judge, split: str) -> EvenlySpaced | None:
        """The images of a split that an evaluator is given, None where it is given none."""
        if split not in self._sources or (split == 'test' and evaluator.test == 'unused'):
            return None
        return EvenlySpaced(self._sources[split], getattr(evaluator, f'max_{split}'))


def _check_judge(name: str, judge: Judge, objective: Any) -> None:
    """Raises UserError where an objective does not predict what a judge judges, or where the judge
    itself finds that it cannot.
    """
    if not hasattr(objective, judge.judges):
        raise UserError(
            f'config.eval.evaluators names {name!r}, which judges what an objective predicts '
            f'({judge.judges}); this objective predicts none: leave it out, or fine-tune with one '
            'that does, such as classification.'
        )
    if hasattr(judge, 'check'):
        judge.check(objective)


def _possible(
    evaluators: dict[str, Evaluator | Judge], *, labels: bool, test: bool
) -> tuple[dict[str, Evaluator | Judge], str | None]:
    """The evaluators that have what they need, and a word on the others."""
    unlabelled = [name for name, e in evaluators.items() if e.labels and not labels]
    testless = [name for name, e in evaluators.items() if e.test == 'needed' and not test]
    words = []
    if unlabelled:
        words.append(
            f'No evaluation by {", ".join(unlabelled)}: the training images have no labels.'
        )
    if testless:
        words.append(f'No evaluation by {", ".join(testless)}: config.data.eval_split is none.')
    left_out = {*unlabelled, *testless}
    kept = {name: e for name, e in evaluators.items() if name not in left_out}
    return kept, ' '.join(words) or None
