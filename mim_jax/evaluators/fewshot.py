"""Few-shot classification: ridge regression in closed form on a few images of each class.

As in big_vision's `fewshot_lsr` (github.com/google-research/big_vision): least squares to one-hot
targets on standardised features, with a penalty. Here the penalty is chosen for each draw by the
leave-one-out error of its shots, the draws are many, and their spread is reported.

All of it is float64 on the host. Between processes travel the shots alone; every process classifies
its own share of the test images.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from scipy import linalg, special

from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import (
    Features,
    Pool,
    check_finite,
    check_labels,
    gather,
)
from mim_jax.ranges import Count, Positive, Repeats

ROWS = 8192  # test images whose class scores are held at once
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Config section of the few-shot evaluator.

    shots: training images per class; a smaller number's are among a larger one's.
    draws: how often the shots are drawn; draw i is seeded by i.
    l2: weight of the kernel's squared norm against the sum of squared errors, in units of the mean
      squared norm of a standardised feature; of several, each draw takes the one with the smallest
      squared error when each shot is predicted from the others.
    pool, max_train, max_test: see `evaluators.Evaluator`.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'needed'

    shots: tuple[Count, ...] = (1, 5, 10, 25)
    draws: Repeats = 5
    l2: tuple[Positive, ...] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    pool: Pool = 'mean'
    max_train: Count | None = None
    max_test: Count | None = None

    def __post_init__(self):
        if not self.shots or len({*self.shots}) < len(self.shots):
            raise ValueError(f'shots must be one or more different numbers, not {self.shots}')
        if not self.l2:
            raise ValueError('l2 must be one or more numbers')

    def run(
        self, train: Features, test: Features, *, num_classes: int
    ) -> Iterator[tuple[str, float]]:
        """Yields ('top1_5shot', share correct in 0..1, mean over the draws) for every number of
        shots and, with several draws, ('top1_5shot_ci95', half the width of that mean's 95 %
        confidence interval by Student's t).

        Raises UserError for a class with fewer training images than shots, an empty split, labels
        outside 0..num_classes-1 or features that are not finite.
        """
        for features, split in (train, 'training'), (test, 'test'):
            check_labels(features, num_classes=num_classes, evaluator='few-shot', split=split)
            check_finite(features, evaluator='few-shot', split=split)
        numbers, labels = (gather(x) for x in (train.numbers, train.labels))
        order = np.argsort(numbers)
        numbers, labels = numbers[order], labels[order]
        self._check_counts(labels, num_classes=num_classes)
        accuracies = np.zeros((len(self.shots), self.draws))
        for draw in range(self.draws):
            ids = draw_shots(labels, shots=max(self.shots), num_classes=num_classes, seed=draw)
            drawn = train.select(np.isin(train.numbers, numbers[ids])).gathered()
            rows = drawn.rows[np.searchsorted(drawn.numbers, numbers[ids])]
            for i, shots in enumerate(self.shots):
                targets = np.repeat(np.arange(num_classes), shots)
                model = fit(rows[:, :shots].reshape(len(targets), -1), targets, l2=self.l2)
                correct = np.array([np.sum(model.classify(test.rows) == test.labels)])
                accuracies[i, draw] = gather(correct).sum()
        accuracies /= gather(np.array([len(test.rows)])).sum()
        for shots, values in zip(self.shots, accuracies, strict=True):
            yield f'top1_{shots}shot', float(values.mean())
            if self.draws > 1:
                yield f'top1_{shots}shot_ci95', half_interval(values)

    def _check_counts(self, labels: np.ndarray, *, num_classes: int) -> None:
        counts = np.bincount(labels, minlength=num_classes)
        least = int(counts.argmin())
        if counts[least] < max(self.shots):
            raise UserError(
                f'The few-shot evaluator needs {max(self.shots)} training images of every class, '
                f'but there are {counts[least]} of class {least}: lower eval.fewshot.shots, or '
                'raise eval.fewshot.max_train.'
            )


def draw_shots(labels: np.ndarray, *, shots: int, num_classes: int, seed: int) -> np.ndarray:
    """Places int [C,shots] in `labels` of images drawn from each class, without repetition."""
    by_class = [np.flatnonzero(labels == c) for c in range(num_classes)]
    return np.stack(
        [np.random.default_rng([seed, c]).permutation(x)[:shots] for c, x in enumerate(by_class)]
    )


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Class scores (x - mean) * scale @ kernel + bias; mean, scale [D], kernel [D,C], bias [C].

    l2: the penalty that was chosen.
    """

    mean: np.ndarray
    scale: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    l2: float

    def classify(self, rows: np.ndarray) -> np.ndarray:
        """The class int [n] with the highest score; the lowest of equal ones."""
        classes = [
            np.argmax(self.scores(rows[i : i + ROWS]), axis=1) for i in range(0, len(rows), ROWS)
        ]
        return np.concatenate([np.zeros(0, int), *classes])

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores float64 [n,C] of features [n,D]."""
        return (rows - self.mean) * self.scale @ self.kernel + self.bias


def fit(rows: np.ndarray, labels: np.ndarray, *, l2: tuple[float, ...]) -> Ridge:
    """Ridge regression to one-hot targets with an intercept that is not penalised.

    rows: [n,D], standardised here by their own mean and deviation and divided by the square root of
    D, so that l2 means the same at any width; a feature that never changes is only centred. labels:
    int [n]; every class up to the largest.

    Of several l2, the one with the smallest squared leave-one-out error (standardisation apart):
    (y - fitted y) / (1 - h) for a row with leverage h, the diagonal of the hat matrix.
    """
    x = rows.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # Rounding leaves a feature that never changes with a tiny deviation.
    constant = deviation <= 1e-6 * np.abs(x).max(axis=0)
    scale = 1 / np.where(constant, 1, deviation) / np.sqrt(x.shape[1])
    x = (x - mean) * scale
    bias = np.bincount(labels) / len(labels)
    y = np.eye(len(bias))[labels] - bias
    left, values, right = _decomposed(x)
    rotated = left.T @ y
    best = None
    for strength in l2:
        shrunk = (values**2 / (values**2 + strength))[:, None]
        leverage = 1 / len(x) + (left**2 @ shrunk)
        error = np.mean(((y - left @ (shrunk * rotated)) / (1 - leverage)) ** 2)
        if best is None or error < best[0]:
            best = error, strength
    strength = best[1]
    kernel = right @ ((values / (values**2 + strength))[:, None] * rotated)
    return Ridge(mean, scale, kernel, bias, strength)


def _decomposed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin singular value decomposition [n,r], [r], [D,r] of x [n,D], by the smaller Gram matrix:
    many times quicker than of x itself, and exact enough for singular values that count against a
    penalty. Those that rounding alone could make are left out.
    """
    n, width = x.shape
    squares, vectors = linalg.eigh(x @ x.T if n < width else x.T @ x, driver='evd')
    kept = squares > squares.max() * max(n, width) * np.finfo(x.dtype).eps
    values, vectors = np.sqrt(squares[kept]), vectors[:, kept]
    if n < width:
        return vectors, values, x.T @ vectors / values
    return x @ vectors / values, values, vectors


def half_interval(values: np.ndarray) -> float:
    """Half the width of the CONFIDENCE interval of the mean of a few values, by Student's t."""
    quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
