"""Dynamic Token Morphing (Kim, Heo, Han, ICLR 2025, arXiv 2401.00254).

Similar target tokens are grouped on the fly; student and target are matched on group means. The
number of groups and of merging steps is drawn anew at every training step, so that the supervision
ranges from token-wise to image-level.
"""

import dataclasses
from typing import Any, Literal

import jax

from mim_jax.config import choice
from mim_jax.losses import DISTANCES, standardize_tokens
from mim_jax.masking import MASKINGS
from mim_jax.morphing import Morphing
from mim_jax.objectives.token_prediction import MaskTokenPrediction
from mim_jax.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class DTM(MaskTokenPrediction):
    """The defaults are the released recipe's.

    morphing: `schedule = 'none'` is the paper's token-wise baseline.
    standardize_target: 'morphed' scales the mean target of every group to mean 0 and variance 1,
      the unbiased one, just before it is compared: groups are formed on the teacher's own tokens
      (the released code's option, off in its recipe). 'tokens' scales every token before anything
      else, by the biased variance: groups are then formed on scaled tokens, and a long one weighs
      no more in its group's mean than a short one.
    """

    masking: Any = choice(MASKINGS, 'block')
    target: Any = choice(TARGETS, 'teacher')
    morphing: Morphing = dataclasses.field(default_factory=Morphing)
    distance: Any = choice(DISTANCES, 'cosine')
    loss_on: Literal['hidden', 'all'] = 'all'
    standardize_target: Literal['none', 'morphed', 'tokens'] = 'none'

    def finish(self, target: jax.Array) -> jax.Array:
        target = super().finish(target)
        return standardize_tokens(target) if self.standardize_target == 'tokens' else target

    def compared(self, target: jax.Array) -> jax.Array:
        morphed = self.standardize_target == 'morphed'
        return standardize_tokens(target, ddof=1) if morphed else target
