"""data2vec for images (Baevski et al., ICML 2022, arXiv 2202.03555).

Of an image that it sees in part the student predicts what its own average makes of the whole: the
mean of the average's last blocks, normalised, at every hidden patch. Such a target speaks of a
patch in its context, and not of the patch alone.
"""

import dataclasses
from typing import Any

import jax

from mim_jax.config import choice
from mim_jax.losses import DISTANCES, SmoothL1
from mim_jax.masking import MASKINGS, BlockMasking
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.token_prediction import MaskTokenPrediction
from mim_jax.panels import Sheets
from mim_jax.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class Data2Vec(MaskTokenPrediction):
    """The defaults are those of the released recipe: mask tokens, and one linear layer on the
    encoder's output.
    """

    masking: Any = choice(MASKINGS, BlockMasking(num_masked=120, min_block=16))
    target: Any = choice(TARGETS, 'ema_layers')
    distance: Any = choice(DISTANCES, SmoothL1(beta=2.0))

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        sheets = super().pictures(variables, batch, key, step)
        sheets.pop('mask', None)  # is part of the following
        return {'tokens': self.token_sheet(variables, batch, step), **sheets}
