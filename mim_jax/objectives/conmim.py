"""ConMIM (Yi et al., ICLR 2023, arXiv 2205.09616): masked image modelling with denoising contrast.

At a hidden patch the network has to say which of the patches of the whole image belongs there, as
its running average sees them in stronger colours: contrast among the patches of one image.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.data import SECOND_COLORS, Colors, DataConfig, View
from mim_jax.losses import TokenContrast, masked_mean
from mim_jax.masking import MASKINGS, GridMasking
from mim_jax.models.heads import Projector
from mim_jax.models.patches import patchify, unpatchify
from mim_jax.models.vit import Encoded
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import Morphed
from mim_jax.panels import Sheets
from mim_jax.ranges import Width


@dataclasses.dataclass(frozen=True)
class ConMIM(Masked, Morphed):
    """The defaults are those of the released recipe.

    teacher_colors: of the average's view, which has the crop and flip of the student's.
    contrast: of every hidden patch with all patches of its image.
    projection, hidden: widths of the projector's last layer and of the two before it; batch norm
      behind each, by the statistics of the batch in hand, class tokens included.
    morphing: groups of the average's projections. A group's tokens have one target, which counts as
      many times as it has tokens.
    """

    masking: Any = choice(MASKINGS, GridMasking(ratio=0.75))
    teacher_colors: Colors = SECOND_COLORS
    contrast: TokenContrast = TokenContrast()
    projection: Width = 256
    hidden: Width = 4096

    needs = ('mask_token',)
    averaged = ('encoder', 'projector')
    needs_whole_batch = True  # batch norm takes its statistics from it

    def views(self, data: DataConfig) -> dict[str, View]:
        second = data.view(like='images', colors=self.teacher_colors)
        return {'images': data.view(), 'second': second}

    def init(self, key: jax.Array, images: Any) -> Variables:
        encoder = self.encoder.init(keys.named(key, 'encoder'), images)['params']
        tokens = jnp.zeros((1, 1, self.encoder.width))
        projector = self._projector().init(keys.named(key, 'projector'), tokens)['params']
        return {'params': {'encoder': encoder, 'projector': projector}}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        mask = self.mask(variables, batch, step)
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction = self.predict(variables, batch, mask, drop_path_keys)
        with jax.named_scope('target'):
            target, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            pairs = self.morphing.pairs(key, prediction, target, **given)
        losses = [masked_mean(self.contrast(p, t), mask) for p, t in pairs]
        return jnp.mean(jnp.stack(losses)), {}, {}

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        """Projections float32 [B,N,P] of the student's view with `mask` [B,N] hidden."""
        params = variables['params']
        encoded = self.encode(params, batch['images'], mask=mask, keys=drop_path_keys)
        return self.project(params, encoded)

    def project(self, params: Any, encoded: Encoded) -> jax.Array:
        """Projections float32 [B,N,P] of the patch tokens."""
        projected = self._projector().apply(
            {'params': params['projector']}, encoded.class_and_patches
        )
        return projected[:, -encoded.tokens.shape[1] :]

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The target, projections [B,N,P] of the average's whole view, and what groups it."""
        average, own = variables['ema'], keys.named(batch['keys'], 'morphing')
        target = self.project(average, self.encode(average, batch['second']))
        given = {'keys': own, 'images': batch['second'], 'grid': self.grid}
        return jax.lax.stop_gradient(target), given

    def health(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """Also the share of hidden patches whose own target is the nearest."""
        mask, logits = self.matching(variables, batch, step)
        nearest = logits.argmax(axis=-1) == jnp.arange(logits.shape[-1])
        found = {'matched_share': masked_mean(nearest, mask)}
        return {**super().health(variables, batch, key, step), **found}

    def matching(
        self, variables: Variables, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The mask [B,N], and how near every patch's prediction is to all targets, [B,N,N]."""
        mask = self.mask(variables, batch, step)
        prediction = self.predict(variables, batch, mask)
        return mask, self.contrast.logits(prediction, self.grouped(variables, batch)[0])

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        mask, logits = self.matching(variables, batch, step)
        second, size = batch['second'], self.encoder.patch_size
        patches = patchify(second, patch_size=size)
        nearest = jnp.take_along_axis(patches, logits.argmax(axis=-1)[..., None], axis=1)
        matched = unpatchify(nearest, grid=self.grid, patch_size=size)
        likely = jnp.diagonal(jax.nn.softmax(logits), axis1=-2, axis2=-1)
        hidden, view = panels.Mask(mask), panels.Image(second, title="the average's view")
        sheet = [
            hidden,
            view,
            panels.Image(matched, mask, title='taken to be hidden there'),
            panels.HeatMap(jnp.where(mask, likely, 0), title='probability of the right patch'),
        ]
        target, given = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **given)
        return {'matches': sheet} | ({'groups': [hidden, view, *groups]} if groups else {})

    def _projector(self) -> Projector:
        return Projector(
            (self.hidden, self.hidden, self.projection),
            initialization=self.encoder.initialization,
            dtype=self.encoder.dtype,
        )
