"""I-JEPA (Assran et al., CVPR 2023, arXiv 2301.08243): predict blocks of an image in latent space.

From what the encoder makes of a context block a narrow predictor says what the encoder's running
average, which sees the whole image, has in four other blocks. Nothing is reconstructed.
"""

import dataclasses

from mim_jax.masking import MultiBlockMasking
from mim_jax.objectives.jepa import JEPA


@dataclasses.dataclass(frozen=True)
class IJEPA(JEPA):
    """The defaults are those of the released recipe, whose encoder has no class token.

    masking: the context, and four blocks that are predicted one by one.
    """

    masking: MultiBlockMasking = MultiBlockMasking()
