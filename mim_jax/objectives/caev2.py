"""CAE v2 (Zhang et al., TMLR 2023): a context autoencoder aligned with CLIP.

CAE without its tokenizer, its decoder and its second encoding: what the encoder says of visible
patches and of the image, and what the latent regressor foretells of hidden ones, goes through one
norm and one linear layer and is compared with the tokens of a frozen teacher.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import DISTANCES
from mim_jax.masking import MASKINGS, BlockMasking, in_places
from mim_jax.models.heads import TokenHead
from mim_jax.models.regressor import LatentRegressor
from mim_jax.models.tokenwise import layer_norm
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.token_prediction import TokenPrediction
from mim_jax.panels import Sheets
from mim_jax.ranges import Depth
from mim_jax.targets import Teacher


@dataclasses.dataclass(frozen=True)
class CAEv2(TokenPrediction):
    """The defaults are those of the released recipe.

    regressor_depth: blocks of the latent regressor, which has no norm of its own at the end.
    loss_on: 'all' is class token, visible and hidden patches, each as much; 'hidden' those alone.
    morphing: groups all patches, visible or hidden; the class token stays alone.
    """

    masking: Any = choice(MASKINGS, BlockMasking(num_masked=98, min_block=16))
    target: Any = choice({'teacher': Teacher}, 'teacher')
    distance: Any = choice(DISTANCES, 'cosine')
    loss_on: Literal['hidden', 'all'] = 'all'
    regressor_depth: Depth = 4

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if not (encoder.class_token and self.target.model.class_token):
            raise UserError(
                'CAE v2 compares class tokens: set config.model.class_token and '
                'config.objective.target.model.class_token to True.'
            )
        if self.target.layer is not None:
            raise UserError(
                f"CAE v2 compares with a teacher's output: config.objective.target.layer = "
                f'{self.target.layer} must be None.'
            )
        return super().bind(encoder, inputs, clock)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens, ids = jnp.zeros((1, 1, self.encoder.width)), jnp.zeros((1, 1), jnp.int32)
        places = {'visible_ids': ids, 'hidden_ids': ids}
        regressor = self._regressor().init(keys.named(key, 'regressor'), tokens, **places)
        return {
            'regressor': regressor['params'],
            'norm': self._norm().init(key, tokens)['params'],
            'head': self._head(features).init(keys.named(key, 'head'), tokens)['params'],
        }

    def predictions(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        """Float32 [B,1+N,D]: of the class token, then of all patches in their order."""
        params, (visible, hidden) = variables['params'], self.places(mask)
        seen = self.encode(params, batch['images'], visible=visible, keys=drop_path_keys)
        places = {'visible_ids': visible, 'hidden_ids': hidden}
        foretold = self._regressor().apply(
            {'params': params['regressor']},
            seen.tokens,
            **places,
            drop_path_keys=keys.named(drop_path_keys, 'regressor'),
        )
        tokens = jnp.concatenate([seen.class_and_patches, foretold], axis=1)
        tokens = self._norm().apply({'params': params['norm']}, tokens)
        head = self._head(params['head']['linear']['kernel'].shape[-1])
        found = head.apply({'params': params['head']}, tokens)
        classes, at_visible, at_hidden = jnp.split(found, [1, 1 + visible.shape[1]], axis=1)
        return jnp.concatenate([classes, in_places(at_visible, at_hidden, **places)], axis=1)

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        return self.predictions(variables, batch, mask, drop_path_keys)[:, 1:]

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        mask = self.mask(variables, batch, step)
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction = self.predictions(variables, batch, mask, drop_path_keys)
        with jax.named_scope('target'):
            taught = self.target.encode(variables['teacher'], batch['images'])
        with jax.named_scope('morphing'):
            given = self.morphed(variables, batch)
            pairs = self.morphing.pairs(key, prediction[:, 1:], taught.tokens, **given)
            distances = jnp.stack([self.distance(p, t) for p, t in pairs])
        if self.loss_on == 'all':
            classes = self.distance(prediction[:, 0], taught.class_token)[None, :, None]
            classes = jnp.broadcast_to(classes, (*distances.shape[:2], 1))
            distances = jnp.concatenate([classes, distances], axis=2)
        return self.reduce(distances, mask), {}, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        sheets = super().pictures(variables, batch, key, step)
        sheets.pop('mask', None)  # is part of the following
        return {'tokens': self.token_sheet(variables, batch, step), **sheets}

    def _regressor(self) -> LatentRegressor:
        return LatentRegressor(self.encoder, self.grid, self.regressor_depth, final_norm=False)

    def _norm(self) -> Any:
        return layer_norm(self.encoder.norm_eps, self.encoder.dtype, None)

    def _head(self, features: int) -> TokenHead:
        return TokenHead(features, self.encoder.initialization, self.encoder.dtype)
