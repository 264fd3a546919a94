"""What an evaluator is: of an encoder's features, or (a judge) of what an objective predicts."""

from collections.abc import Iterator
from typing import ClassVar, Literal, Protocol

import numpy as np

from mim_jax.evaluators.features import Features, Pool
from mim_jax.evaluators.judged import Judged

Test = Literal['needed', 'optional', 'unused']


class Evaluator(Protocol):
    """A frozen dataclass whose fields are its config section.

    labels: whether it needs them; without, it also judges images that have none.
    test: whether it needs the evaluation split, does something else where there is none, or never
      looks at it (and then has no field `max_test`).
    pool: the feature of an image, one of `features.POOLINGS`.
    max_train, max_test: so many images of each split, evenly spaced over it; None: all.

    It may also have
    recipes: the features of an image, in place of the one of `pool` (`features.recipe`).
    views: so many augmented views of each image are given in place of the image itself.
    max_gigabytes: a run does not start where the features that it asks for take more.
    """

    labels: ClassVar[bool]
    test: ClassVar[Test]

    pool: Pool
    max_train: int | None

    def run(
        self, train: Features, test: Features | None, *, num_classes: int | None
    ) -> Iterator[tuple[str, float]]:
        """Yields (name, value), the same on every process. The first is the headline, higher being
        better: what a run names in the end.

        train, test: every image of the split once, each process its own share; `test` is None where
        there is none or it is not used. num_classes: labels are 0..num_classes-1; None without
        labels.
        """
        ...


class Judge(Protocol):
    """An evaluator of what an objective itself predicts; also a frozen dataclass and its section.

    labels, test: as of an `Evaluator`.
    judges: the method of an objective that it asks, such as 'logits'.
    max_test: so many images of the evaluation split, evenly spaced over it; None: all.

    It may also have `check(objective)`, which raises UserError before a run starts where it could
    not judge.
    """

    labels: ClassVar[bool]
    test: ClassVar[Test]
    judges: ClassVar[str]

    max_test: int | None

    def judge(self, judged: Judged) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields (name, value), as an `Evaluator` does; ('confusion', int [true class, predicted
        class]) is no figure but drawn by `mim_jax.evaluate`.
        """
        ...
