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
from mim_jax.evaluators.pixels import count_pairs, figures
from mim_jax.evaluators.sliding import Sliding
from mim_jax.evaluators.sliding import confusion as slide
from mim_jax.ranges import Count, Positive, Side


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Config section: mIoU and accuracies of `objective.pixel_logits` on the evaluation split.

    mode: 'whole' judges the images as evaluators see them, all of one size; 'slide' in their own
      size, by a window of the model's size (`mim_jax.evaluators.sliding`).
    stride: pixels from one window to the next; None: two thirds of the window (mmseg's 341 of 512).
    scales, flip: of 'slide', how often and in which sizes an image is seen, see `Sliding`.
    max_test: so many images, evenly spaced over the split; None: all.
    """

    labels: ClassVar[bool] = False
    test: ClassVar[Test] = 'needed'
    judges: ClassVar[str] = 'pixel_logits'

    mode: Literal['whole', 'slide'] = 'whole'
    stride: Side | None = None
    scales: tuple[Positive, ...] = (1.0,)
    flip: bool = False
    max_test: Count | None = None

    def __post_init__(self):
        if not self.scales:
            raise ValueError('scales must be one or more numbers')

    def judge(self, judged: Judged) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields ('miou', …), ('macc', …), ('aacc', …), see `figures`, and ('confusion', int64
        [true class, predicted class], how many pixels).
        """
        confusion = whole(judged) if self.mode == 'whole' else slide(judged, self._sliding(judged))
        if not confusion.sum():
            raise UserError(
                'The segmentation evaluator got no labelled pixels: is the split empty?'
            )
        yield from figures(confusion).items()
        yield 'confusion', confusion

    def _sliding(self, judged: Judged) -> Sliding:
        window = judged.views['images'].image_size
        strides = (self.stride or max(1, round(side * 2 / 3)) for side in window)
        return Sliding(window, tuple(strides), scales=self.scales, flip=self.flip)


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
