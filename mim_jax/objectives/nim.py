"""Noisy Image Modeling (You et al., NeurIPS 2023, arXiv 2302.01056): restore images from noise.

No patch is hidden: MAE's encoder and decoder see all patches of an image with strong noise of a
random deviation, and predict the clean one. What has learned this can also cleanse the images that
a classifier is given of an attacker's changes (`de3.py`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.corruptions import CORRUPTIONS, Noise
from mim_jax.inputs import Inputs
from mim_jax.losses import DISTANCES
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.morphed import MorphedTargets
from mim_jax.panels import Sheets
from mim_jax.targets import TARGETS, Pixels


@dataclasses.dataclass(frozen=True)
class NIM(MorphedTargets):
    """The defaults are those of the released recipe.

    corruption: what is done to the image, one of CORRUPTIONS: noise of a deviation that is drawn
      for every image from a Gamma distribution, of 75 grey levels in the mean.
    target: what of the clean image is predicted at every patch.
    distance: between the tokens of prediction and target, one of DISTANCES; of all tokens.
    """

    corruption: Any = choice(CORRUPTIONS, Noise(gamma=(25.0, 3.0)))
    target: Any = choice(TARGETS, Pixels(normalize=True))
    distance: Any = choice(DISTANCES, 'l2')
    decoder: MAEDecoder = dataclasses.field(default_factory=MAEDecoder)

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        self.corruption.check(inputs.image_size, inputs.channels)
        return super().bind(encoder, inputs, clock)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jax.ShapeDtypeStruct((1, 1, self.encoder.width), 'float32')
        decoder = dict(self.decoder.init(key, tokens, grid=self.grid, features=features)['params'])
        del decoder['mask_token']  # no patch is hidden
        return {'decoder': decoder}

    def corrupt(self, batch: Batch) -> jax.Array:
        """The images [B,H,W,C] that the network is given; not all of their values in [0, 1]."""
        return self.corruption(keys.named(batch['keys'], 'corruption'), batch['images']).images

    def predict(self, params: Any, images: jax.Array, drop_path_keys: Any = None) -> jax.Array:
        """Prediction float32 [B,N,D] from corrupted images."""
        encoded = self.encode(params, images, keys=drop_path_keys)
        return self.decoder.apply(
            {'params': params['decoder']},
            encoded.tokens,
            visible_ids=None,
            grid=self.grid,
            features=params['decoder']['predict']['kernel'].shape[-1],
            class_token=encoded.class_token,
        )

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction = self.predict(variables['params'], self.corrupt(batch), drop_path_keys)
        with jax.named_scope('target'):
            target, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            pairs = self.morphing.pairs(key, prediction, target, **given)
        return jnp.mean(jnp.stack([self.distance(p, t) for p, t in pairs])), {}, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        corrupted = self.corrupt(batch)
        given = panels.Image(jnp.clip(corrupted, 0, 1), title='corrupted')
        sheets = {}
        if hasattr(self.target, 'panels'):
            prediction = self.predict(variables['params'], corrupted)
            sheets['reconstruction'] = [given, *self.target.panels(prediction, batch['images'])]
        target, others = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **others)
        if groups:
            sheets['groups'] = [given, *groups]
        return sheets or {'corrupted': [given]}
