"""Representation health without labels: how many directions features use, and how evenly.

RankMe: Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
Representations by Their Rank" (ICML 2023), section 3. Uniformity: Wang and Isola, "Understanding
Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere" (ICML
2020), section 4.1.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np

from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import Features, Pool, check_finite, gather, unit
from mim_jax.ranges import Count

EPSILON = 1e-7  # of RankMe and LiDAR
TEMPERATURE = 2.0  # the paper's t of the uniformity
ROWS = 1024  # features that are worked on at once, in float64 or with all others


@dataclasses.dataclass(frozen=True)
class Health:
    """Config section of the evaluator of representation health.

    pool, max_train: see `evaluators.Evaluator`; RankMe's paper takes 25,600 training images.
    """

    labels: ClassVar[bool] = False
    test: ClassVar[Test] = 'unused'

    pool: Pool = 'mean'
    max_train: Count | None = 25600

    def run(
        self, train: Features, test: None = None, *, num_classes: int | None = None
    ) -> Iterator[tuple[str, float]]:
        """Yields ('rankme', 1 to the smaller of images and width) and ('uniformity', -8 to 0, lower
        being more uniform). Raises UserError for fewer than two images, and features that are not
        finite.
        """
        count = int(gather(np.array([len(train.rows)])).sum())
        if count < 2:
            raise UserError(f'The health evaluator needs two images or more, not {count}.')
        check_finite(train, evaluator='health', split='training')
        yield 'rankme', effective_rank(singular_values(train.rows))
        yield 'uniformity', uniformity(unit(train.rows))


def singular_values(rows: np.ndarray) -> np.ndarray:
    """Those of the features [N,D] of all processes, of which `rows` [n,D] are this one's: float64
    [min(N,D)], rising. From the Gram matrix of the columns, which is all that travels.
    """
    gram = np.zeros((rows.shape[1],) * 2)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS].astype(np.float64)
        gram += part.T @ part
    gram = gather(gram[None]).sum(axis=0)
    count = int(gather(np.array([len(rows)])).sum())
    squares = np.linalg.eigvalsh(gram)[-min(count, len(gram)) :]
    return np.sqrt(np.maximum(squares, 0))


def effective_rank(values: np.ndarray) -> float:
    """The exponential of the entropy of the shares p = value / sum + EPSILON of values that are not
    negative: RankMe of singular values, LiDAR of eigenvalues.
    """
    if not values.any():
        return 1.0  # all are zero: the shares are not defined
    shares = values / values.sum() + EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def uniformity(rows: np.ndarray) -> float:
    """log of the mean of exp(-t |x - y|^2) over pairs of different images, t = TEMPERATURE.

    rows: unit features [n,D] of this process; the pairs are among those of all processes, each
    process takes the pairs of its own with all.
    """
    everyone = gather(rows)
    first = int(gather(np.array([len(rows)]))[: jax.process_index()].sum())
    total = 0.0
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        squares = np.maximum(2 - 2 * (part @ everyone.T), 0)
        potentials = np.exp(-TEMPERATURE * squares)
        own = np.arange(len(part))
        potentials[own, first + start + own] = 0
        total += potentials.sum(dtype=np.float64)
    total = gather(np.array([total])).sum()
    return float(np.log(total / (len(everyone) * (len(everyone) - 1))))
