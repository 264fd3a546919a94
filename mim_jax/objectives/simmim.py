"""SimMIM (Xie et al., CVPR 2022): mask tokens, a linear head, L1 on the hidden patches' pixels."""

import dataclasses
from typing import Any

from mim_jax.config import choice
from mim_jax.losses import DISTANCES
from mim_jax.masking import MASKINGS
from mim_jax.objectives.token_prediction import MaskTokenPrediction
from mim_jax.targets import TARGETS, Pixels


@dataclasses.dataclass(frozen=True)
class SimMIM(MaskTokenPrediction):
    """The defaults are the released recipe's: normalised pixels, not normalised per patch."""

    masking: Any = choice(MASKINGS, 'grid')
    target: Any = choice(TARGETS, Pixels(normalize=False))
    distance: Any = choice(DISTANCES, 'l1')
