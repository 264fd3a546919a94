"""The evaluators of a run, and what they are fed: the encoder's features of sets of images."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mim_jax import data, sharding
from mim_jax.errors import UserError
from mim_jax.evaluators import (
    POOLINGS,
    Evaluator,
    EvenlySpaced,
    Features,
    Judge,
    Judged,
    collect,
    pool_tokens,
    pooled,
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
        self._config = program.run.data
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
            self._check_encoder()
        for name, judge in self._judges.items():
            _check_judge(name, judge, program.objective)
        if self._config.eval_split is not None and any(
            evaluator.test != 'unused' for evaluator in evaluators.values()
        ):
            self._sources['test'] = data.make_source(self._config, split=self._config.eval_split)
            self._check_labels()

    def run(self, variables: dict[str, Any]) -> dict[str, float]:
        """All evaluators' figures, as {'eval/knn/top1': …}."""
        run = self._program.run
        if self._all and run.eval.use_ema:
            variables = {**variables, 'params': {**variables['params'], **variables['ema']}}

        @functools.cache
        def encoded(split: str, count: int) -> dict[str, Features]:
            """Each set of images is encoded once, whoever asks for it."""
            source = EvenlySpaced(self._sources[split], count)
            return collect(functools.partial(self._parts, variables), self._batches(source))

        def features(evaluator: Evaluator, split: str) -> Features | None:
            if split not in self._sources or (split == 'test' and evaluator.test == 'unused'):
                return None
            source = EvenlySpaced(self._sources[split], getattr(evaluator, f'max_{split}'))
            return pooled(encoded(split, len(source)), pool=evaluator.pool)

        values = {}
        for name, evaluator in self._all.items():
            if name in self._judges:
                results = evaluator.judge(self._judged(evaluator, variables))
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

    def _judged(self, judge: Judge, variables: dict[str, Any]) -> Judged:
        """What a judge is given."""
        return Judged(
            objective=self._program.objective,
            variables=variables,
            mesh=self._program.mesh,
            data=self._config,
            views=self.views,
            source=EvenlySpaced(self._sources['test'], judge.max_test),
            batch_size=self._batch_size,
            num_classes=self._num_classes,
            compiled=self._compiled_by_judges,
        )

    def _check_average(self) -> None:
        """Raises UserError where the average of the encoder is asked for and there is none."""
        variables = self._program.abstract_state.variables
        if self._program.run.eval.use_ema and 'encoder' not in variables.get('ema', {}):
            raise UserError(
                'config.eval.use_ema = True needs an average of the encoder; set '
                'config.train.ema.decay (and parts, if given, to hold the encoder).'
            )

    def _check_encoder(self) -> None:
        """Raises UserError where the encoder has not what evaluators pool."""
        params = self._program.abstract_state.variables['params']
        images = self._program.abstract_batch['images']
        jax.eval_shape(self._compiled, {'params': params}, images)

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

    def _batches(self, source: data.Source) -> Iterable[dict[str, np.ndarray]]:
        return data.eval_batches(
            source,
            self._config,
            views={'images': dataclasses.replace(self.views['images'], boxes=False, maps=())},
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _parts(self, variables: dict[str, Any], images: np.ndarray) -> dict[str, jax.Array]:
        """What the poolings are made of, float32 [B,D] each over the mesh."""
        # Only the encoder's input is put on the devices; the labels stay here.
        batch = sharding.put_batch({'images': images}, self._program.mesh)
        return self._compiled({'params': variables['params']}, batch['images'])

    @functools.cached_property
    def _compiled(self) -> Any:
        """The feature function, compiled once for the whole run: the parts of all the evaluators'
        poolings from one pass through the encoder.
        """
        objective = self._program.objective
        parts = {part for e in self._evaluators.values() for part in POOLINGS[e.pool]}

        def features(variables: dict, images: jax.Array) -> dict[str, jax.Array]:
            encoded = objective.features(variables, images.astype('float32') / 255)
            return {part: pool_tokens(encoded, pool=part) for part in sorted(parts)}

        return jax.jit(features, out_shardings=sharding.batch_sharding(self._program.mesh))


def _check_judge(name: str, judge: Judge, objective: Any) -> None:
    """Raises UserError where an objective does not predict what a judge judges."""
    if not hasattr(objective, judge.judges):
        raise UserError(
            f'config.eval.evaluators names {name!r}, which judges what an objective predicts '
            f'({judge.judges}); this objective predicts none: leave it out, or fine-tune with one '
            'that does, such as classification.'
        )


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
