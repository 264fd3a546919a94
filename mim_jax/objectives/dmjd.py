"""DMJD (Ma et al., arXiv 2301.00230): disjoint masking with joint distillation.

An image is seen twice, each time behind a mask, and what the first mask leaves visible the second
hides: every patch is predicted in one step or the other. Beside the decoder at hidden patches a
small head predicts at the visible ones, so that these learn as well.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.losses import DISTANCES, SmoothL1, masked_mean
from mim_jax.masking import CoveringMasking
from mim_jax.models.heads import Projector, TokenHead
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative
from mim_jax.targets import HOG, TARGETS

VIEWS = ('drop_path', 'drop_path_second')  # each view draws its own


@dataclasses.dataclass(frozen=True)
class DMJD(MAE):
    """The defaults are those of the released recipe.

    masking: the masks of the two views of an image.
    target: what is predicted at every patch. That code's histograms are of levels up to 255, and so
      is the number which it adds to their variance.
    distance: at hidden patches. visible_distance: at visible ones.
    visible_weight: of the latter in the loss, theta in the released code.
    morphing: of the prediction of a whole view, hidden patches by the decoder and visible ones by
      the head; both views have the same groups.
    """

    masking: CoveringMasking = CoveringMasking(ratio=0.6)
    target: Any = choice(TARGETS, HOG(eps=1e-5 / 255**2))
    visible_distance: Any = choice(DISTANCES, SmoothL1(beta=2.0))
    visible_weight: NotNegative = 1.0

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        params = super().init_predictor(key, features)
        for name, module, width in (
            ('visible_projector', self._projector(), self.encoder.width),
            ('visible_head', self._head(features), self.decoder.width),
        ):
            drawn = module.init(keys.named(key, name), jnp.zeros((1, 1, width)))
            params[name] = drawn['params']
        return params

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.masks(batch)[0]

    def masks(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Hidden patches [B,N] bool of the first and of the second view."""
        return self.masking.pair(keys.named(batch['keys'], 'mask'), grid=self.grid)

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        """Prediction [B,N,D]: at hidden patches the decoder's, at visible ones the head's."""
        params, visible = variables['params'], self.visible(mask)
        encoded = self.encode(params, batch['images'], visible=visible, keys=drop_path_keys)
        decoded = self.decode(params, encoded, visible)
        projected = self._projector().apply({'params': params['visible_projector']}, encoded.tokens)
        head = self._head(decoded.shape[-1])
        seen = head.apply({'params': params['visible_head']}, projected)
        places = jax.vmap(lambda x, ids, new: x.at[ids].set(new, unique_indices=True))
        return places(decoded, visible, seen)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        masks = self.masks(batch)
        with jax.named_scope('student'):
            predictions = [
                self.predict(variables, batch, mask, keys.named(batch['keys'], name))
                for mask, name in zip(masks, VIEWS, strict=True)
            ]
        with jax.named_scope('target'):
            target, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            # One grouping for both: side by side they are averaged over the same groups.
            both = jnp.concatenate(predictions, axis=-1)
            pairs = self.morphing.pairs(key, both, target, **given)
        hidden, visible = [], []
        for both, target in pairs:
            for prediction, mask in zip(jnp.split(both, 2, axis=-1), masks, strict=True):
                hidden.append(self.reduce(self.distance(prediction, target)[None], mask))
                visible.append(masked_mean(self.visible_distance(prediction, target), ~mask))
        losses = {
            'hidden_loss': jnp.mean(jnp.stack(hidden)),
            'visible_loss': jnp.mean(jnp.stack(visible)),
        }
        return losses['hidden_loss'] + self.visible_weight * losses['visible_loss'], losses, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        target, views = self.targets(variables, batch['images']), []
        for name, mask in zip(('first', 'second'), self.masks(batch), strict=True):
            distances = self.distance(self.predict(variables, batch, mask), target)
            views += [
                panels.Mask(mask, title=f'hidden from the {name}'),
                panels.HeatMap(distances, title='distance of prediction and target'),
            ]
        sheets = super().pictures(variables, batch, key, step)
        sheets.pop('mask', None)  # among the views
        return {**sheets, 'views': views}

    def _projector(self) -> Projector:
        return Projector(
            (self.decoder.width,) * 3,
            norm='layer',
            activation='gelu',
            bias=True,
            initialization=self.encoder.initialization,
            dtype=self.encoder.dtype,
        )

    def _head(self, features: int) -> TokenHead:
        return TokenHead(features, self.encoder.initialization, self.encoder.dtype)
