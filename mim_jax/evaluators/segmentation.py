"""How well an objective segments: the confusion of classes over all labelled pixels."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data.fields import UNLABELLED
from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.judged import Judged


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Config section: mIoU and accuracies of `objective.pixel_logits` on the evaluation split.

    mode: 'whole' judges the images as evaluators see them, all of one size.
    max_test: so many images, evenly spaced over the split; None: all.
    """

    labels: ClassVar[bool] = False
    test: ClassVar[Test] = 'needed'
    judges: ClassVar[str] = 'pixel_logits'

    mode: Literal['whole', 'slide'] = 'whole'
    max_test: int | None = None

    def __post_init__(self):
        if self.max_test is not None and self.max_test < 1:
            raise ValueError(f'max_test must be at least 1 or none, not {self.max_test}')

    def judge(self, judged: Judged) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields ('miou', …), ('macc', …), ('aacc', …), see `figures`, and ('confusion', int64
        [true class, predicted class], how many pixels).
        """
        confusion = whole(judged)
        if not confusion.sum():
            raise UserError(
                'The segmentation evaluator got no labelled pixels: is the split empty?'
            )
        yield from figures(confusion).items()
        yield 'confusion', confusion


def figures(confusion: np.ndarray) -> dict[str, float]:
    """Shares from 0 to 1 by a confusion matrix [true class, predicted class].

    miou: the mean over the classes of pixels that are rightly of the class over those that are or
    are said to be; classes without any are left out. macc: the mean over the true classes of the
    share that is found. aacc: the share of all pixels that is right.
    """
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + said - right
    return {
        'miou': float(np.mean(right[union > 0] / union[union > 0])),
        'macc': float(np.mean(right[true > 0] / true[true > 0])),
        'aacc': float(right.sum() / confusion.sum()),
    }


def count_pairs(labels: jax.Array, predicted: jax.Array, *, classes: int) -> jax.Array:
    """Confusion int32 [classes,classes] of int [B,…] each, labels of 255 left out."""
    known = labels != UNLABELLED
    places = jnp.where(known, labels * classes + predicted, classes**2).reshape(len(labels), -1)

    # One image at a time: a batch split over devices is counted where it lies.
    def count(places):
        return jnp.zeros(classes**2 + 1, jnp.int32).at[places].add(1)

    return jax.vmap(count)(places).sum(axis=0)[:-1].reshape(classes, classes)


def whole(judged: Judged) -> np.ndarray:
    """The confusion int64 over the images as evaluators see them."""
    objective = judged.objective
    classes, key = objective.num_classes, f'images_{objective.map}'

    def count(variables, images, labels, valid):
        logits = objective.pixel_logits(variables, images.astype('float32') / 255)
        labels = jnp.where(valid[:, None, None], labels.astype(jnp.int32), UNLABELLED)
        return count_pairs(labels, logits.argmax(axis=-1), classes=classes)

    step = judged.jit('segmentation whole', count)
    # Pixels of one batch fit in int32, those of a split may not.
    total, pending = np.zeros((classes, classes), np.int64), None
    for batch in judged.batches({'images': judged.views['images']}):
        put = judged.put({name: batch[name] for name in ('images', key, 'valid')})
        if pending is not None:
            total += jax.device_get(pending)
        pending = step(judged.variables, put['images'], put[key], put['valid'])
    return total if pending is None else total + jax.device_get(pending)
