"""Masked Autoencoders (He et al., CVPR 2022): encode visible patches, decode all of them."""

import dataclasses
from typing import Any

import jax

from mim_jax.config import choice
from mim_jax.masking import MASKINGS, visible_ids
from mim_jax.models.decoders import MAEDecoder
from mim_jax.objectives.base import Variables
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
        decoder = self.decoder.init(key, tokens, grid=self.grid, features=features)
        return {'decoder': decoder['params']}

    def predict(
        self, variables: Variables, images: jax.Array, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        params = variables['params']
        num_visible = mask.shape[1] - self.masking.count(self.grid)
        visible = visible_ids(mask, num_visible=num_visible)
        encoded = self.encoder.apply(
            {'params': params['encoder']},
            self.inputs.normalize(images),
            visible_ids=visible,
            drop_path_keys=drop_path_keys,
        )
        return self.decoder.apply(
            {'params': params['decoder']},
            encoded.tokens,
            visible_ids=visible,
            grid=self.grid,
            features=params['decoder']['predict']['kernel'].shape[-1],
            class_token=encoded.class_token,
        )
