"""What came of a run: its loss, what its features are worth before and after, its speed."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

# How many standard errors a share has to differ by to have moved: of 60 shares that stay as they
# are, all stay within three with a probability of 85 %, within two with one of 6 %.
ERRORS = 3.0
UNMOVED = 'not moved'

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Before and after: `knn` and `linear` as shares 0 to 1 of the right answers, `rankme`.

    loss: means over the steps of the log's first and last line. speed: images per second, the
    median of the log's lines.
    """

    loss: Pair
    knn: Pair
    linear: Pair
    rankme: Pair
    speed: float


def read(lines: Sequence[dict], *, total: int) -> Figures:
    """Those of the lines of a metrics.jsonl, of a run of `total` steps."""

    def values(name: str) -> list[float]:
        return [line[name] for line in lines if line.get(name) is not None]

    def pair(name: str) -> Pair:
        found = {line['step']: line[name] for line in lines if name in line}
        return found[0], found[total]

    losses = values('train/loss')
    return Figures(
        loss=(losses[0], losses[-1]),
        knn=pair('eval/knn/top1'),
        linear=pair('eval/linear/top1'),
        rankme=pair('eval/health/rankme'),
        speed=statistics.median(values('speed/images_per_second')),
    )


def standard_error(shares: Pair, count: int) -> float:
    """Of the difference of two shares of right answers on `count` images each, binomial ones.

    The images are the same before and after, so that it is too large rather than too small.
    """
    return math.sqrt(sum(share * (1 - share) for share in shares) / count)


def moved(shares: Pair, count: int) -> int:
    """1 where a share has risen by more than ERRORS standard errors, -1 where it has fallen by as
    much, 0 where neither can be told.
    """
    difference = shares[1] - shares[0]
    if abs(difference) <= ERRORS * standard_error(shares, count):
        return 0
    return 1 if difference > 0 else -1


def verdict(figures: Figures, *, knn_images: int, linear_images: int) -> str:
    """What became of the features by kNN and linear probe, judged on so many images."""
    found = {moved(figures.knn, knn_images), moved(figures.linear, linear_images)} - {0}
    if not found:
        return UNMOVED
    if len(found) == 2:
        return 'mixed'
    return 'better' if found == {1} else 'worse'
