"""Masked Frequency Modeling (Xie et al., ICLR 2023, arXiv 2206.07706).

No patch is hidden. From every image either the high or the low frequencies are removed; the
network sees all patches of what is left and predicts the image, which is compared with the clean
one where frequencies are gone.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.corruptions import CORRUPTIONS, Corrupted
from mim_jax.errors import UserError
from mim_jax.frequencies import brightness, image_of, spectrum
from mim_jax.inputs import Inputs
from mim_jax.losses import SpectrumDistance, Weighted
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.heads import TokenHead
from mim_jax.models.patches import unpatchify
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.panels import Sheets


@dataclasses.dataclass(frozen=True)
class MFM(Objective):
    """The defaults are those of the released ViT recipe.

    corruption: what is done to the image, one of CORRUPTIONS; the others are the tasks that the
      paper compares with.
    distance: of the spectra of prediction and clean image.
    loss_on: the frequencies whose distances are averaged: those 'removed', or 'all' of them, as
      ever where a corruption removes none altogether.
    decoder: blocks between encoder and pixels; with a depth of 0 one linear layer predicts them.
      It is MAE's, whose positions are a sine-cosine table; the released code learns one.
    """

    corruption: Any = choice(CORRUPTIONS, 'frequencies')
    distance: SpectrumDistance = SpectrumDistance()
    loss_on: Literal['removed', 'all'] = 'removed'
    decoder: MAEDecoder = MAEDecoder(depth=0)

    @property
    def needs_whole_batch(self) -> bool:
        return self.distance.over_batch

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        self.corruption.check(inputs.image_size, inputs.channels)
        parts = self.distance.parts
        if any(size % parts for size in inputs.image_size):
            raise UserError(
                f'config.objective.distance.parts = {parts}: images of '
                f'{inputs.image_size[0]}x{inputs.image_size[1]} pixels do not divide into so many.'
            )
        if parts > 1 and self.loss_on == 'removed':
            raise UserError(
                f'config.objective.distance.parts = {parts}: the frequencies removed are those of '
                'whole images; set objective.loss_on to all.'
            )
        return super().bind(encoder, inputs, clock)

    def init(self, key: jax.Array, images: Any) -> Variables:
        params = {'encoder': self.encoder.init(keys.named(key, 'encoder'), images)['params']}
        tokens, key = jnp.zeros((1, 1, self.encoder.width)), keys.named(key, 'predictor')
        if self.decoder.depth:
            options = {'grid': self.grid, 'features': self._features}
            params['decoder'] = dict(self.decoder.init(key, tokens, **options)['params'])
            del params['decoder']['mask_token']  # no patch is hidden
        else:
            params['head'] = self._head().init(key, tokens)['params']
        return {'params': params}

    def corrupt(self, batch: Batch) -> Corrupted:
        """What the network is given of `batch['images']`."""
        return self.corruption(keys.named(batch['keys'], 'corruption'), batch['images'])

    def predict(self, params: Any, images: jax.Array, drop_path_keys: Any = None) -> jax.Array:
        """The clean images, normalised, float32 [B,H,W,C], from corrupted ones in [0, 1]."""
        encoded = self.encode(params, images, keys=drop_path_keys)
        if self.decoder.depth:
            patches = self.decoder.apply(
                {'params': params['decoder']},
                encoded.tokens,
                visible_ids=None,
                grid=self.grid,
                features=self._features,
                class_token=encoded.class_token,
            )
        else:
            patches = self._head().apply({'params': params['head']}, encoded.tokens)
        return unpatchify(patches, grid=self.grid, patch_size=self.encoder.patch_size)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Weighted, dict[str, jax.Array], Any]:
        corrupted = self.corrupt(batch)
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction = self.predict(variables['params'], corrupted.images, drop_path_keys)
        with jax.named_scope('spectra'):
            distances = self.distance(prediction, self.inputs.normalize(batch['images']))
        counted = jnp.ones((len(batch['images']), 1, 1, 1, 1))
        if self.loss_on == 'removed' and corrupted.removed is not None:
            counted = corrupted.removed[:, None, :, :, None].astype(jnp.float32)
        # Low frequencies are few and high ones many: the mean is over those of the whole batch.
        total = (distances * counted).mean(axis=(1, 2, 3, 4)).sum()
        count = counted.mean(axis=(1, 2, 3, 4)).sum()
        return Weighted(total, count), {'counted_share': count / len(counted)}, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        images, corrupted = batch['images'], self.corrupt(batch)
        prediction = self.inputs.denormalize(self.predict(variables['params'], corrupted.images))
        clean, seen, predicted = map(spectrum, (images, corrupted.images, prediction))
        restored = prediction
        if corrupted.removed is not None:
            # The loss says nothing of the frequencies that were kept: they are the image's own.
            gone = corrupted.removed[..., None]
            seen, predicted = jnp.where(gone, 0, clean), jnp.where(gone, predicted, clean)
            restored = image_of(predicted)
        titled = {'spectrum': clean, 'what is left of it': seen, 'of the reconstruction': predicted}
        return {
            'reconstruction': [
                panels.Image(jnp.clip(corrupted.images, 0, 1), title='corrupted'),
                panels.Image(jnp.clip(restored, 0, 1), title='reconstruction'),
            ],
            'spectra': [
                panels.Image(brightness(x, like=clean), title=title) for title, x in titled.items()
            ],
        }

    @property
    def _features(self) -> int:
        return math.prod(self.encoder.patch_size) * self.inputs.channels

    def _head(self) -> TokenHead:
        return TokenHead(self._features, self.encoder.initialization, self.encoder.dtype)
