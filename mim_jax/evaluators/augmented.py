"""Features under augmentation, without labels: do views of an image agree, and tell it from others.

LiDAR: Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
Architectures" (ICLR 2024, arXiv 2312.04000), section 4. Alignment: Wang and Isola, "Understanding
Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere" (ICML
2020), section 4.1, with their exponent of 2.

Both are float64 on the host, of the features of all processes.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
from scipy import linalg

from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import Features, Pool, check_finite, unit
from mim_jax.evaluators.health import effective_rank
from mim_jax.ranges import Count, Positive, Range


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Config section of the evaluator of features under augmentation.

    views: of each image, drawn as for training.
    delta: what LiDAR adds to the variance within images, in every direction.
    pool, max_train: see `evaluators.Evaluator`. LiDAR's paper takes 50 views of 1,000 images.
    """

    labels: ClassVar[bool] = False
    test: ClassVar[Test] = 'unused'

    views: Annotated[int, Range(2, 1000)] = 50
    delta: Positive = 1e-4
    pool: Pool = 'mean'
    max_train: Count | None = 1000

    def run(
        self, train: Features, test: None = None, *, num_classes: int | None = None
    ) -> Iterator[tuple[str, float]]:
        """Yields ('lidar', 1 to the smaller of width and images) and ('alignment', 0 to 4, lower
        being closer). Images of which a view is missing take no part.

        Raises UserError for fewer than two images, and features that are not finite.
        """
        check_finite(train, evaluator='augmented', split='training')
        train = train.gathered()
        images, counts = np.unique(train.numbers // self.views, return_counts=True)
        whole = np.isin(train.numbers // self.views, images[counts == self.views])
        rows = train.rows[whole].reshape(-1, self.views, train.rows.shape[-1])
        if len(rows) < 2:
            raise UserError(
                f'The augmented evaluator needs two images or more of which all views can be read, '
                f'not {len(rows)}.'
            )
        yield 'lidar', lidar(rows, delta=self.delta)
        yield 'alignment', alignment(rows)


def lidar(rows: np.ndarray, *, delta: float) -> float:
    """Effective rank of the matrix of a linear discriminant analysis whose classes are images.

    rows: features [n,q,D] of q views of n images. With the covariance Sb of the images' means and
    the mean covariance of views around them, Sw, delta added to its diagonal: of the eigenvalues of
    Sw^-1/2 Sb Sw^-1/2.
    """
    rows = rows.astype(np.float64)
    means = rows.mean(axis=1)
    between, within = means - means.mean(axis=0), (rows - means[:, None])
    within = within.reshape(-1, rows.shape[-1])
    within = within.T @ within / len(within) + delta * np.eye(rows.shape[-1])
    # The generalised eigenvalues of (Sb, Sw) are those of that matrix.
    values = linalg.eigh(between.T @ between / len(between), within, eigvals_only=True)
    return effective_rank(np.maximum(values, 0))


def alignment(rows: np.ndarray) -> float:
    """Mean of |x - y|^2 over pairs of different views of one image, of unit features.

    rows: features [n,q,D] of q views of n images.
    """
    count = rows.shape[1]
    x = unit(rows.reshape(-1, rows.shape[-1]).astype(np.float64)).reshape(rows.shape)
    # The squared distances of all ordered pairs sum to 2 q sum |x|^2 - 2 |sum x|^2.
    squares = 2 * count * (x**2).sum(axis=(1, 2)) - 2 * (x.sum(axis=1) ** 2).sum(axis=1)
    return float(np.maximum(squares, 0).mean() / (count * (count - 1)))
