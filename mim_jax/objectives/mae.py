"""Masked Autoencoders (He et al., CVPR 2022): encode visible patches, decode all of them."""

import dataclasses
from typing import Any

import jax

from mim_jax.config import choice
from mim_jax.masking import MASKINGS
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.vit import Encoded
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.token_prediction import TokenPrediction
from mim_jax.targets import TARGETS, Pixels


@dataclasses.dataclass(frozen=True)
class MAE(TokenPrediction):
    """The defaults are the released recipe's, with per-patch normalised pixels."""

    masking: Any = choice(MASKINGS, 'random')
    target: Any = choice(TARGETS, Pixels(normalize=True))
    decoder: MAEDecoder = dataclasses.field(default_factory=MAEDecoder)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jax.ShapeDtypeStruct((1, 1, self.encoder.width), 'float32')
        options = {'grid': self.grid, 'features': features}
        decoder = dict(self.decoder.init(key, tokens, **options)['params'])
        if not self.masking.count(self.grid):
            del decoder['mask_token']
        return {'decoder': decoder}

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        params = variables['params']
        visible = self.visible(mask)
        encoded = self.encode(params, batch['images'], visible=visible, keys=drop_path_keys)
        return self.decode(params, encoded, visible)

    def decode(
        self,
        params: Any,
        encoded: Encoded,
        visible: jax.Array | None,
        *,
        name: str = 'decoder',
        **context: Any,
    ) -> jax.Array:
        """Prediction float32 [B,N,D] at every patch from what the encoder says of the places
        `visible` [B,K] (None: of all).

        name: the part of `params` that holds the decoder. context: what else it is given.
        """
        return self.decoder.apply(
            {'params': params[name]},
            encoded.tokens,
            visible_ids=visible,
            grid=self.grid,
            features=params[name]['predict']['kernel'].shape[-1],
            class_token=encoded.class_token,
            **context,
        )
