"""Accuracy of what an objective itself classifies."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.judged import Judged


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

    max_test: int | None = None

    def __post_init__(self):
        if self.max_test is not None and self.max_test < 1:
            raise ValueError(f'max_test must be at least 1 or none, not {self.max_test}')

    def judge(self, judged: Judged) -> Iterator[tuple[str, float]]:
        """Yields ('top1', share in 0..1), ('top5', …) where there are more than 5 classes, and
        ('loss', mean cross-entropy in nats, without label smoothing).
        """
        objective, images_view = judged.objective, {'images': judged.views['images']}

        def of_batch(
            variables: Mapping[str, Any], images: jax.Array, labels: jax.Array, valid: jax.Array
        ) -> dict[str, jax.Array]:
            logits = objective.logits(variables, images.astype('float32') / 255)
            ranks = _ranks(logits, labels)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            found = {'top1': ranks < 1, 'top5': ranks < 5, 'loss': losses, 'count': valid}
            return {k: jnp.where(valid, v, 0).astype(jnp.float32).sum() for k, v in found.items()}

        step = judged.jit('accuracy', of_batch)
        sums, pending = {}, None

        def add(batch_sums: Mapping[str, jax.Array]) -> None:
            for name, value in batch_sums.items():
                sums[name] = sums.get(name, 0.0) + float(value)

        for batch in judged.batches(images_view):
            wanted = {key: batch[key] for key in ('images', 'labels', 'valid')}
            batch = judged.put(wanted)
            # One batch stays in flight, so that the host prepares the next while the device works.
            if pending is not None:
                add(pending)
            pending = step(judged.variables, *(batch[key] for key in wanted))
        if pending is not None:
            add(pending)
        # The sums of a batch are global already: every process has counted all images.
        count = sums.get('count', 0.0)
        if not count:
            raise UserError('The accuracy evaluator got no test images: is the split empty?')
        yield 'top1', sums['top1'] / count
        if judged.num_classes > 5:
            yield 'top5', sums['top5'] / count
        yield 'loss', sums['loss'] / count


def _ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the right one, int32 [B]."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1])
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    ahead = before.sum(axis=-1)
    return jnp.where(jnp.isfinite(logits).all(axis=-1), ahead, logits.shape[-1])
