"""Beyond Masking (Tian et al., arXiv 2203.14313): images spoilt in other ways than by masks.

MAE's encoder and decoder restore an image that was distorted, blurred or has lost its colours, or
predict a whole scene from its middle (zoomed in), which may be masked besides, or from a small
picture amid its reflection (zoomed out).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.corruptions import CORRUPTIONS
from mim_jax.data import DataConfig, View
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import border_square
from mim_jax.masking import MASKINGS, NoMasking
from mim_jax.models.patches import patchify, unpatchify
from mim_jax.models.resizing import adaptive_average
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets
from mim_jax.ranges import Share
from mim_jax.targets import TARGETS, Pixels
from mim_jax.zooming import ZOOMS, ZoomIn, ZoomOut


@dataclasses.dataclass(frozen=True)
class BeyondMasking(MAE):
    """The defaults are those of the released code's `zoomed-in`.

    corruption: what is done to the image, one of ZOOMS and of CORRUPTIONS.
    masking: which patches of what is left are hidden besides; 'none': the loss is over all.
    target: what is predicted at every patch; under a zoom pixels, of a picture of the whole scene
      that is as large as the images.
    morphing: under a zoom, of the patches as the network sees them.
    border_weight: in the loss, of what a zoom in hides; the patches that it shows have the rest.
    """

    corruption: Any = choice({**ZOOMS, **CORRUPTIONS}, 'zoom_in')
    masking: Any = choice({**MASKINGS, 'none': NoMasking}, 'random')
    target: Any = choice(TARGETS, Pixels(normalize=True, normalize_over='channel'))
    border_weight: Share = 0.2

    @property
    def zooms(self) -> bool:
        return isinstance(self.corruption, tuple(ZOOMS.values()))

    def views(self, data: DataConfig) -> dict[str, View]:
        views = {'images': data.view()}
        if self.zooms:
            views['scene'] = data.view(image_size=self.corruption.scene_size(data.image_size))
        return views

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if self.zooms and not isinstance(self.target, Pixels):
            raise UserError(
                'config.objective.target: what is predicted of a scene are pixels; set '
                'objective.target.name to pixels, or another objective.corruption.name.'
            )
        self.corruption.check(inputs.image_size, inputs.channels)
        return super().bind(encoder, inputs, clock)

    def seen(self, batch: Batch) -> jax.Array:
        """What the network is given, [B,H,W,C]; not all of its values in [0, 1]."""
        draws = keys.named(batch['keys'], 'corruption')
        if self.zooms:
            return self.corruption.seen(draws, batch['scene'], self.inputs.image_size)
        return self.corruption(draws, batch['images']).images

    def clean(self, batch: Batch) -> jax.Array:
        """What is to be restored, [B,H,W,C]: the images, or whole scenes at their size."""
        size = self.inputs.image_size
        return adaptive_average(batch['scene'], size) if self.zooms else batch['images']

    def shown(self, batch: Batch) -> jax.Array:
        """The images [B,H,W,C] at whose patches prediction and target are compared."""
        return self.seen(batch) if self.zooms else batch['images']

    def framed(self, batch: Batch, tokens: jax.Array) -> jax.Array:
        """Patches [B,N,D] of what is restored at their places in what is compared."""
        if not self.zooms:
            return tokens
        draws = keys.named(batch['keys'], 'corruption')
        framed = self.corruption.framed(draws, self._picture(tokens))
        return patchify(framed, patch_size=self.encoder.patch_size)

    def restored(
        self, variables: Variables, batch: Batch, mask: jax.Array | None, drop_path_keys: Any = None
    ) -> jax.Array:
        """Prediction float32 [B,N,D] of the clean image, or of the whole scene."""
        given = {**batch, 'images': self.seen(batch)}
        return super().predict(variables, given, mask, drop_path_keys)

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array | None, drop_path_keys: Any = None
    ) -> jax.Array:
        return self.framed(batch, self.restored(variables, batch, mask, drop_path_keys))

    def target_of(self, variables: Variables, batch: Batch) -> jax.Array:
        if isinstance(self.corruption, ZoomOut):
            return self.framed(batch, self.targets(variables, self.clean(batch)))
        return self.targets(variables, self.shown(batch))

    def morphed(self, variables: Variables, batch: Batch) -> dict[str, Any]:
        return {**super().morphed(variables, batch), 'images': self.shown(batch)}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        mask = self.mask(variables, batch, step)
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            restored = self.restored(variables, batch, mask, drop_path_keys)
        prediction = self.framed(batch, restored)
        loss = self.reduce(self.distances(variables, batch, key, prediction), mask)
        if not isinstance(self.corruption, ZoomIn):
            return loss, {}, {}
        whole = [
            self.corruption.whole(self._picture(tokens))
            for tokens in (restored, self.targets(variables, self.clean(batch)))
        ]
        borders = self.corruption.borders(self.inputs.image_size)
        border = border_square(*whole, borders=borders).mean()
        metrics = {'patch_loss': loss, 'border_loss': border}
        return (1 - self.border_weight) * loss + self.border_weight * border, metrics, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        mask, seen = self.mask(variables, batch, step), jnp.clip(self.seen(batch), 0, 1)
        given = panels.Image(seen, title='what the network sees')
        if mask is not None:
            given = panels.Mask(mask, images=seen, title=given.title)
        sheet = [panels.Image(batch['scene'], title='scene'), given] if self.zooms else [given]
        if hasattr(self.target, 'panels'):
            restored = self.restored(variables, batch, mask)
            sheet += self.target.panels(restored, self.clean(batch))
        target, others = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **others)
        groups = [given, *(x.replace(images=others['images']) for x in groups)]
        return {'reconstruction': sheet} | ({'groups': groups} if len(groups) > 1 else {})

    def _picture(self, tokens: jax.Array) -> jax.Array:
        return unpatchify(tokens, grid=self.grid, patch_size=self.encoder.patch_size)
