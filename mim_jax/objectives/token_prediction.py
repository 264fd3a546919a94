"""What the token-wise methods share: a target for every patch, morphing, and pictures of both."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.losses import DISTANCES, masked_mean
from mim_jax.masking import MASKINGS
from mim_jax.models.heads import TokenHead
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import MorphedTargets
from mim_jax.panels import Sheets


@dataclasses.dataclass(frozen=True)
class TokenPrediction(Masked, MorphedTargets):
    """Predicts a target at every patch; a method adds how tokens are hidden and predicted.

    masking: which tokens are hidden, one of MASKINGS.
    distance: between the tokens of prediction and target, one of DISTANCES.
    loss_on: the tokens whose distances are averaged; after morphing a token stands for its group,
      so that with 'all' a group weighs as much as it has tokens.
    """

    masking: Any = choice(MASKINGS, 'random')
    distance: Any = choice(DISTANCES, 'l2')
    loss_on: Literal['hidden', 'all'] = 'hidden'

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        """Prediction float32 [B,N,D] for a batch's views in [0, 1] with `mask` [B,N] of `images`
        hidden.
        """
        raise NotImplementedError

    def distances(
        self, variables: Variables, batch: Batch, key: jax.Array, prediction: jax.Array
    ) -> jax.Array:
        """Distances [S,B,N] between prediction [B,N,D] and target, under S draws of morphing."""
        with jax.named_scope('target'):
            target = self.target_of(variables, batch)
        with jax.named_scope('morphing'):
            pairs = self.morphing.pairs(key, prediction, target, **self.morphed(variables, batch))
            return jnp.stack([self.distance(p, self.compared(t)) for p, t in pairs])

    def compared(self, target: jax.Array) -> jax.Array:
        """The target [B,N,D], averaged over its groups, as the distance takes it."""
        return target

    def reduce(self, distances: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The loss from the tokens' distances [S,B,N]: its mean over the draws. Where no token is
        hidden (None), all count.
        """
        every = mask is None or self.loss_on == 'all'
        losses = [d.mean() if every else masked_mean(d, mask) for d in distances]
        return jnp.mean(jnp.stack(losses))

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        mask = self.mask(variables, batch, step)
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction = self.predict(variables, batch, mask, drop_path_keys)
        return self.reduce(self.distances(variables, batch, key, prediction), mask), {}, {}

    def health(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        prediction = self.predict(variables, batch, self.mask(variables, batch, step))
        variances = self.variances(variables, batch, prediction)
        return {**super().health(variables, batch, key, step), **variances}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        images = batch['images']
        mask = self.mask(variables, batch, step)
        hidden, sheets = panels.Mask(mask), {}
        if hasattr(self.target, 'panels'):
            shown = self.target.panels(self.predict(variables, batch, mask), images)
            filled = shown[-1].replace(mask=mask, title='with visible patches')
            sheets['reconstruction'] = [hidden, *shown, filled]
        target, given = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **given)
        if groups:
            sheets['groups'] = [hidden, *groups]
        return sheets or {'mask': [hidden]}

    def token_sheet(self, variables: Variables, batch: Batch, step: jax.Array) -> list[Any]:
        """What is hidden, target and prediction as tokens, and their distances: for methods whose
        target is no picture.
        """
        mask = self.mask(variables, batch, step)
        target = self.target_of(variables, batch)
        prediction = self.predict(variables, batch, mask)
        return [
            panels.Mask(mask),
            panels.Tokens(target, title='target (PCA)'),
            panels.Tokens(prediction, title='prediction (its own PCA)'),
            panels.HeatMap(self.distance(prediction, target), title='distance'),
        ]


class MaskTokenPrediction(TokenPrediction):
    """All tokens in the encoder, hidden ones as mask tokens, and one linear layer on top."""

    needs = ('mask_token',)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jnp.zeros((1, 1, self.encoder.width))
        return {'head': self._head(features).init(key, tokens)['params']}

    def predict(
        self, variables: Variables, batch: Batch, mask: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        params = variables['params']
        encoded = self.encode(params, batch['images'], mask=mask, keys=drop_path_keys)
        head = self._head(params['head']['linear']['kernel'].shape[-1])
        return head.apply({'params': params['head']}, encoded.tokens)

    def _head(self, features: int) -> TokenHead:
        return TokenHead(features, self.encoder.initialization, self.encoder.dtype)
