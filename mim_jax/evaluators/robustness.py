"""How a classifier does on other images of its classes: ImageNet-V2, -A, -R, -Sketch and -C."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data import Crop, find
from mim_jax.data.folder import ImageFolder, class_names
from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.benchmark_sets import (
    ALEXNET_ERRORS,
    classes_of,
    corrupted_sets,
    numbered_classes_of,
    open_set,
)
from mim_jax.evaluators.judged import Judged
from mim_jax.evaluators.subset import EvenlySpaced
from mim_jax.ranges import Count

FIELD = 'config.eval.robustness'
# Sets whose predictions are restricted to the classes that they have (200 of ImageNet's 1,000).
RESTRICTED = ('a', 'r')


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Config section: top-1 of `objective.logits` on sets that lie in folders, by the protocol of
    each. A set without a folder is left out.

    v2: ImageNet-V2 (Recht et al., ICML 2019), one of its three; folders are numbers of the sorted
      class names.
    a, r: ImageNet-A (Hendrycks et al., CVPR 2021) and -R (Hendrycks et al., ICCV 2021); folders are
      class names, of which alone a prediction may be one.
    sketch: ImageNet-Sketch (Wang et al., NeurIPS 2019); folders are class names.
    c: ImageNet-C (Hendrycks and Dietterich, ICLR 2019), CORRUPTION/SEVERITY/CLASS.
    max_test: so many images of each set, in `c` of each corruption and severity, evenly spaced over
      it; None: all.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'unused'
    judges: ClassVar[str] = 'logits'

    v2: str | None = None
    a: str | None = None
    r: str | None = None
    sketch: str | None = None
    c: str | None = None
    max_test: Count | None = None

    def check(self, objective: Any) -> None:
        """Raises UserError where no set is named, one is not there or has classes that the training
        data do not have, or where these have no names.
        """
        names, sets = _names(objective), self._sets()
        if not sets and self.c is None:
            raise UserError(
                f'{FIELD} names no set: give the folder of one of v2, a, r, sketch, c, or leave '
                "'robustness' out of config.eval.evaluators"
            )
        for name in sets:
            self._opened(name, names)
        if self.c is not None:
            for folders in corrupted_sets(self.c, field=f'{FIELD}.c').values():
                for path in folders:  # a million files: only their folders are looked at here
                    classes_of(class_names(path), names, field=f'{FIELD}.c', path=path)

    def judge(self, judged: Judged) -> Iterator[tuple[str, float]]:
        """Yields ('top1_SET', share in 0..1) for each set, c's the mean over corruptions and
        severities; then for c ('error_c_CORRUPTION', the mean over severities of 1 - top-1), their
        mean ('error_c', …), and ('mce', the mean of the corruptions' errors, each divided by
        AlexNet's).
        """
        names = _names(judged.objective)
        for name in self._sets():
            source, classes = self._opened(name, names)
            yield f'top1_{name}', self._top1(judged, source, classes, only=name in RESTRICTED)
        if self.c is None:
            return
        # These images are what is left of larger ones after the usual crop: nothing is cut off.
        usual = judged.views['images'].crop
        whole = Crop(mode='centre', interpolation=usual.interpolation)
        errors = {}
        for corruption, folders in corrupted_sets(self.c, field=f'{FIELD}.c').items():
            of_severity = []
            for path in folders:
                source = open_set(path, field=f'{FIELD}.c')
                classes = classes_of(source.classes, names, field=f'{FIELD}.c', path=path)
                of_severity.append(1 - self._top1(judged, source, classes, crop=whole))
            errors[corruption] = statistics.fmean(of_severity)
        yield 'top1_c', 1 - statistics.fmean(errors.values())
        for corruption, error in errors.items():
            yield f'error_c_{corruption}', error
        yield 'error_c', statistics.fmean(errors.values())
        yield 'mce', statistics.fmean(errors[name] / ALEXNET_ERRORS[name] for name in errors)

    def _sets(self) -> list[str]:
        return [name for name in ('v2', 'a', 'r', 'sketch') if getattr(self, name) is not None]

    def _opened(self, name: str, names: tuple[str, ...]) -> tuple[ImageFolder, np.ndarray]:
        """A set's images, and which class each of its labels is."""
        path, field = getattr(self, name), f'{FIELD}.{name}'
        source = open_set(path, field=field)
        found = numbered_classes_of if name == 'v2' else classes_of
        return source, found(source.classes, names, field=field, path=path)

    def _top1(
        self,
        judged: Judged,
        source: ImageFolder,
        classes: np.ndarray,
        *,
        only: bool = False,
        crop: Crop | None = None,
    ) -> float:
        """The share of the images whose prediction is right; among `classes` alone with `only`."""
        view = dataclasses.replace(judged.views['images'], boxes=False, maps=())
        view = view if crop is None else dataclasses.replace(view, crop=crop)
        judged = dataclasses.replace(judged, source=EvenlySpaced(source, self.max_test))
        allowed = np.ones(judged.num_classes, bool)
        if only:
            allowed = np.isin(np.arange(judged.num_classes), classes)
        step = judged.jit('robustness', _counting(judged.objective))
        batches = (
            {'labels': classes[batch['labels']], **{k: batch[k] for k in ('images', 'valid')}}
            for batch in judged.batches({'images': view})
        )
        sums = {'right': np.int32(0), 'count': np.int32(0)}
        sums = judged.summed(step, sums, batches, judged.replicate(allowed))
        if not sums['count']:
            raise UserError(f'{FIELD}: no image below {source.root} can be read')
        return float(sums['right'] / sums['count'])


def _counting(objective: Any) -> Any:
    """The function that adds a batch's images, and those predicted right, to the sums so far."""

    def add(
        sums: Mapping[str, jax.Array],
        variables: Mapping[str, Any],
        allowed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        valid: jax.Array,
    ) -> dict[str, jax.Array]:
        logits = objective.logits(variables, images.astype('float32') / 255)
        # As in `Accuracy`: of equal scores the lower class counts, what is not finite is not right.
        predicted = jnp.where(allowed, logits, -jnp.inf).argmax(axis=-1)
        right = (predicted == labels) & jnp.isfinite(logits).all(axis=-1) & valid
        return {
            'right': sums['right'] + right.sum(dtype='int32'),
            'count': sums['count'] + valid.sum(dtype='int32'),
        }

    return add


def _names(objective: Any) -> tuple[str, ...]:
    """Of the classes of the training data. Raises UserError where its source does not tell them."""
    label = find(objective.inputs.fields, 'label')
    if label is None or label.names is None:
        raise UserError(
            f'{FIELD} finds the classes of a set by their names, and the data source of this run '
            "does not name its own: train from class folders, or leave 'robustness' out of "
            'config.eval.evaluators'
        )
    return label.names
