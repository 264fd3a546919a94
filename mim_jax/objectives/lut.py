"""Learning with Unmasked Tokens (Kim et al., ECCV 2024, arXiv 2310.13593).

MAE on the first of two views, and broader contextualisation: the mean of the few tokens that the
encoder sees of one view predicts what its running average says of the whole of the other.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.data import JITTER, Colors, Crop, DataConfig, View
from mim_jax.losses import cosine_distance
from mim_jax.masking import DisjointMasking
from mim_jax.models.heads import MLPHead
from mim_jax.models.vit import Encoded
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative, Width

DROP_PATH = ('drop_path', 'drop_path_second')  # each view draws its own
COLORS = dataclasses.replace(JITTER, one_of=True, grey=1.0, solarize=1.0, blur=1.0)


@dataclasses.dataclass(frozen=True)
class LUT(MAE):
    """The defaults are the released recipe's.

    The first view has the crop, flip and colours of the section `data`.

    second_crop, second_colors: of the second view, which draws a crop and a flip of its own: jitter
      with probability 0.8, then exactly one of grey, solarisation and blur.
    masking: one permutation for the two views of an image, which show disjoint places.
    morphing: of the reconstruction; the alignment is of means over all tokens.
    hidden: width of the hidden layers of projector and predictor, which are linear, batch norm by
      the statistics of the batch in hand, ReLU, linear, without biases.
    reconstruction_weight, context_weight: of the two losses, w_mae and w_bc in the released code.
    """

    masking: DisjointMasking = DisjointMasking(ratio=0.75)
    second_crop: Crop = Crop(mode='simple', pad=4)
    second_colors: Colors = COLORS
    hidden: Width = 4096
    reconstruction_weight: NotNegative = 1.0
    context_weight: NotNegative = 0.25

    averaged = ('encoder', 'projector')
    needs_whole_batch = True  # batch norm takes its statistics from it

    def views(self, data: DataConfig) -> dict[str, View]:
        second = data.view(crop=self.second_crop, colors=self.second_colors)
        return {'images': data.view(), 'second': second}

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        params = super().init_predictor(key, features)
        pooled = jnp.zeros((1, self.encoder.width))
        for name in ('projector', 'predictor'):
            params[name] = self._head().init(keys.named(key, name), pooled)['params']
        return params

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.masks(batch)[0]

    def masks(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Hidden patches [B,N] bool of the first and of the second view."""
        return self.masking.pair(keys.named(batch['keys'], 'mask'), grid=self.grid)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params, views = variables['params'], (batch['images'], batch['second'])
        masks = self.masks(batch)
        with jax.named_scope('student'):
            places = [self.visible(mask) for mask in masks]
            first, second = (
                self.encode(params, view, visible=visible, keys=keys.named(batch['keys'], name))
                for view, visible, name in zip(views, places, DROP_PATH, strict=True)
            )
            prediction = self.decode(params, first, places[0])
            contexts = [
                self._apply(params, 'predictor', self.project(params, encoded))
                for encoded in (first, second)
            ]
        with jax.named_scope('target'):
            teacher = jax.lax.stop_gradient(variables['ema'])
            aims = [self.project(teacher, self.encode(teacher, view)) for view in views]
        distances = self.distances(variables, batch, key, prediction)
        reconstruction = self.reduce(distances, masks[0])
        # The two cross pairs: what is seen of one view is aimed at the whole of the other.
        crossed = cosine_distance(jnp.stack(contexts), jnp.stack(aims[::-1]))
        context = 2 * crossed.mean()  # of 2 - 2 cos
        loss = self.reconstruction_weight * reconstruction + self.context_weight * context
        return loss, {'reconstruction_loss': reconstruction, 'context_loss': context}, {}

    def project(self, params: Any, encoded: Encoded) -> jax.Array:
        """Projection float32 [B,D] of the mean of the patch tokens that there are."""
        return self._apply(params, 'projector', encoded.tokens.mean(axis=1, dtype=jnp.float32))

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        first, second = self.masks(batch)
        views = [
            panels.Mask(first, title='seen of the first'),
            panels.Image(batch['second'], title='second view'),
            panels.Mask(second, images=batch['second'], title='seen of the second'),
        ]
        return {**super().pictures(variables, batch, key, step), 'views': views}

    def _apply(self, params: Any, head: str, x: jax.Array) -> jax.Array:
        return self._head().apply({'params': params[head]}, x)

    def _head(self) -> MLPHead:
        return MLPHead(
            self.hidden,
            self.encoder.width,
            batch_norm=True,
            bias=False,
            initialization=self.encoder.initialization,
            dtype=self.encoder.dtype,
        )
