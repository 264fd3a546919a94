"""CroCo (Weinzaepfel et al., NeurIPS 2022, arXiv 2210.10716): complete one view from another.

MAE of a first image, of which next to nothing is visible, with a second image of the same scene
before the decoder's eyes: what is hidden can be told from there by whoever knows how the two views
lie in space.
"""

import dataclasses
from typing import Any

import jax

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.data import DataConfig, View
from mim_jax.errors import UserError
from mim_jax.masking import MASKINGS, RandomMasking
from mim_jax.models.decoders import CrossDecoder
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets


@dataclasses.dataclass(frozen=True)
class CroCo(MAE):
    """The defaults are those of the released recipe, whose encoder has no class token.

    pair: the field that the second view shows: 'other', the second image of a pair, or 'image',
      another crop of the first.
    decoder: both images' tokens go through it; the first's attend to the second's.
    """

    masking: Any = choice(MASKINGS, RandomMasking(ratio=0.9, floor='hidden'))
    decoder: CrossDecoder = dataclasses.field(default_factory=CrossDecoder)
    pair: str = 'other'

    def views(self, data: DataConfig) -> dict[str, View]:
        """Both with crop and colours of their own draw, and none mirrored: that would be done to
        each alone, and no rotation of a camera mirrors a scene.
        """
        if data.flip:
            raise UserError(
                f'config.data.flip = {data.flip}: one of two views of a scene would be mirrored '
                'and not the other; set it to 0.'
            )
        return {'images': data.view(), 'second': data.view(of=self.pair)}

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        params, visible = variables['params'], self.visible(mask)
        # One encoder for both: the first image's visible patches, all of the second's.
        first = self.encode(params, batch['images'], visible=visible, keys=drop_path_keys)
        drop_path_keys = keys.named(drop_path_keys, 'second')
        second = self.encode(params, batch['second'], keys=drop_path_keys)
        return self.decode(params, first, visible, memory=second.tokens)

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        second = panels.Image(batch['second'], title='second view')
        sheets = super().pictures(variables, batch, key, step)
        return {name: [hidden, second, *rest] for name, (hidden, *rest) in sheets.items()}
