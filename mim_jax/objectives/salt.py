"""SALT (ICLR 2026): V-JEPA's masks with a frozen teacher, in stages, on images.

A first run predicts the hidden pixels themselves: the target `pixels`. A second learns from the
first one's encoder, frozen: the target `teacher`, whose weights are the work directory of that run.
Its encoder may teach a third. With the target `ema` it is V-JEPA, in one run.
"""

import dataclasses
from typing import Any

import jax

from mim_jax import keys
from mim_jax.config import choice
from mim_jax.losses import DISTANCES
from mim_jax.masking import Blocks, ShortLongMasking
from mim_jax.models.predictors import Predictor
from mim_jax.objectives.base import Batch
from mim_jax.objectives.jepa import JEPA
from mim_jax.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class SALT(JEPA):
    """The defaults are those of the stages with a teacher.

    masking: two unions of blocks, predicted in a pass of encoder and predictor each, with a mask
      token each. The loss is the mean of both.
    """

    masking: ShortLongMasking = ShortLongMasking()
    target: Any = choice(TARGETS, 'teacher')
    distance: Any = choice(DISTANCES, 'l1')
    predictor: Predictor = Predictor(depth=12, heads=16, mask_token_initialization='zeros')

    passes = ('short', 'long')

    def blocks(self, batch: Batch, step: jax.Array) -> dict[str, Blocks]:
        return self.masking(keys.named(batch['keys'], 'mask'), grid=self.grid, step=step)
