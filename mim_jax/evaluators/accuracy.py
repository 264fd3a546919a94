"""Accuracy of what an objective itself classifies."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import ranks_of
from mim_jax.evaluators.judged import Judged
from mim_jax.ranges import Count


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Config section: top-1, top-5 and cross-entropy of `objective.logits` on the evaluation split.

    Every image counts exactly once, on any mesh and batch size. Of equal scores that of the lower
    class counts as higher; a score that is not finite is never right.

    max_test: so many images, evenly spaced over the split; None: all.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'needed'
    judges: ClassVar[str] = 'logits'

    max_test: Count | None = None

    def judge(self, judged: Judged) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields ('top1', share in 0..1), ('top5', …) where there are more than 5 classes,
        ('loss', mean cross-entropy in nats, without label smoothing) and ('confusion', int64
        [true class, predicted class], how many images).
        """
        objective, count = judged.objective, judged.num_classes

        def add(
            sums: Mapping[str, jax.Array],
            variables: Mapping[str, Any],
            images: jax.Array,
            labels: jax.Array,
            valid: jax.Array,
        ) -> dict[str, jax.Array]:
            logits = objective.logits(variables, images.astype('float32') / 255)
            places = ranks_of(logits, labels)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            found = {'top1': places < 1, 'top5': places < 5, 'loss': losses, 'count': valid}
            found = {k: jnp.where(valid, v, 0).sum(dtype=sums[k].dtype) for k, v in found.items()}
            place = labels, logits.argmax(axis=-1)
            found['confusion'] = jnp.zeros((count, count), 'int32').at[place].add(valid)
            return {k: sums[k] + found[k] for k in sums}

        step = judged.jit('accuracy', add)
        sums = {'top1': np.int32(0), 'top5': np.int32(0), 'loss': np.float32(0)}
        sums |= {'count': np.int32(0), 'confusion': np.zeros((count, count), np.int32)}
        batches = judged.batches({'images': judged.views['images']})
        wanted = ({k: batch[k] for k in ('images', 'labels', 'valid')} for batch in batches)
        sums = judged.summed(step, sums, wanted)
        if not sums['count']:
            raise UserError(
                'The accuracy evaluator got no test image that can be read (what cannot is named '
                'above, if there is any): see the data section.'
            )
        yield 'top1', float(sums['top1'] / sums['count'])
        if count > 5:
            yield 'top5', float(sums['top5'] / sums['count'])
        yield 'loss', float(sums['loss'] / sums['count'])
        yield 'confusion', sums['confusion'].astype(np.int64)
