"""The evaluators of a run, and what they are fed: the encoder's features of labelled images."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from mim_jax import data, sharding
from mim_jax.errors import UserError
from mim_jax.evaluators import EvenlySpaced, pool_tokens
from mim_jax.program import Program


class Evaluation:
    """Runs the evaluators of the config section `eval` on the variables of a program.

    `missing` says why nothing is evaluated, where the data has no labels or no evaluation split;
    otherwise it is None. `views` are the objective's as they are drawn, of which evaluators see
    `images` alone.
    """

    def __init__(self, program: Program, source: data.Source):
        self._program = program
        self._source = source
        self._config = program.run.data
        self._features = {}
        self._test = None
        self.missing = None
        self.views = data.eval_views(self._config, program.views)
        self._num_classes = data.num_classes(source.fields)
        if self._num_classes is None:
            self.missing = 'No evaluation: the training images have no labels.'
        elif self._config.eval_split is None:
            self.missing = 'No evaluation: config.data.eval_split is none.'
        elif program.run.eval.evaluators:
            size = program.run.eval.batch_size or self._config.batch_size
            sharding.check_batch(size, program.mesh, field='eval.batch_size')
            self._test = data.make_source(self._config, split=self._config.eval_split)

    def run(self, variables: dict[str, Any]) -> dict[str, float]:
        """All evaluators' figures, as {'eval/knn/top1': …}."""
        if self._test is None:
            return {}
        run = self._program.run
        if run.eval.use_ema:
            if 'encoder' not in variables.get('ema', {}):
                raise UserError(
                    'config.eval.use_ema = True needs an average of the encoder; set '
                    'config.train.ema.decay (and parts, if given, to hold the encoder).'
                )
            variables = {**variables, 'params': variables['ema']}
        values = {}
        for name in run.eval.evaluators:
            evaluator = getattr(run.eval, name)
            results = evaluator.run(
                functools.partial(self._feature_fn(evaluator.pool), variables),
                self._batches(EvenlySpaced(self._source, evaluator.max_train)),
                self._batches(EvenlySpaced(self._test, evaluator.max_test)),
                num_classes=self._num_classes,
            )
            values |= {f'eval/{name}/{metric}': value for metric, value in results}
        return values

    def sample(self, count: int) -> dict[str, np.ndarray]:
        """Up to `count` items in `views`, for pictures: evaluation data if there is any."""
        source = EvenlySpaced(self._source if self._test is None else self._test, count)
        batches = data.eval_batches(source, self._config, views=self.views, batch_size=len(source))
        return next(iter(batches))

    def _batches(self, source: data.Source) -> Iterable[dict[str, np.ndarray]]:
        return data.eval_batches(
            source,
            self._config,
            views={'images': dataclasses.replace(self.views['images'], boxes=False, maps=())},
            batch_size=self._program.run.eval.batch_size or self._config.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _feature_fn(self, pool: str) -> Callable[[dict, np.ndarray], jax.Array]:
        """The jitted feature function of a pooling, compiled once for the whole run."""
        if pool not in self._features:
            program = self._program

            def features(variables: dict, images: jax.Array) -> jax.Array:
                images = images.astype('float32') / 255
                return pool_tokens(program.objective.features(variables, images), pool=pool)

            place = sharding.batch_sharding(program.mesh)
            compiled = jax.jit(features, out_shardings=place)

            def run(variables: dict, images: np.ndarray) -> jax.Array:
                # Only the encoder's input is put on the devices; the labels stay here.
                batch = sharding.put_batch({'images': images}, program.mesh)
                return compiled({'params': variables['params']}, batch['images'])

            self._features[pool] = run
        return self._features[pool]
