"""Bootstrap Your Own Latent on tokens (Grill et al., NeurIPS 2020), which morphing groups.

The network and its average see two views of an image that differ in colour. The network predicts
the average's projection of every token and of their mean; with morphing tokens are matched on
group means.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys
from mim_jax.config import choice
from mim_jax.data import DataConfig, View
from mim_jax.losses import DISTANCES, cosine_distance
from mim_jax.models.heads import MLPHead
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.morphed import Morphed
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative, Width


@dataclasses.dataclass(frozen=True)
class BYOL(Morphed):
    """Two views, an average of the network, token and pooled alignment.

    Both views have the same crop and flip, so that their tokens stand for the same places; colour
    jitter (`data.colors`) is drawn for each. Projectors and predictors are BYOL's: linear,
    batch norm by the statistics of the batch in hand, ReLU, linear; one pair for tokens, one for
    their mean.

    morphing: groups of the average's token projections.
    projection, hidden: widths of projections and of the heads' hidden layers.
    token_weight, pooled_weight: of the two alignments in the loss.
    distance: of tokens, one of DISTANCES; of pooled projections it is the cosine. Half
      of BYOL's squared distance between unit vectors is 1 - cosine.
    """

    projection: Width = 256
    hidden: Width = 4096
    token_weight: NotNegative = 1.0
    pooled_weight: NotNegative = 1.0
    distance: Any = choice(DISTANCES, 'cosine')

    averaged = ('encoder', 'token_projector', 'pooled_projector')
    needs_whole_batch = True  # batch norm takes its statistics from it

    def views(self, data: DataConfig) -> dict[str, View]:
        return {'images': data.view(), 'second': data.view(like='images')}

    def init(self, key: jax.Array, images: Any) -> Variables:
        params = {'encoder': self.encoder.init(keys.named(key, 'encoder'), images)['params']}
        for name in ('token', 'pooled'):
            for part, width in (
                ('projector', self.encoder.width),
                ('predictor', self.projection),
            ):
                head = f'{name}_{part}'
                inputs = jnp.zeros((1, width))
                params[head] = self._head().init(keys.named(key, head), inputs)['params']
        return {'params': params}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        views = batch['images'], batch['second']
        average = jax.tree.map(jax.lax.stop_gradient, variables['ema'])
        token_losses, pooled_losses = [], []
        # Each view is predicted from the other; the loss is the mean of both directions.
        for direction, (seen, aimed) in enumerate((views, views[::-1])):
            drop_path_keys = keys.named(batch['keys'], f'drop_path{direction}')
            tokens, pooled = self.projections(variables['params'], seen, drop_path_keys)
            prediction = self._apply(variables['params'], 'token_predictor', tokens)
            pooled_prediction = self._apply(variables['params'], 'pooled_predictor', pooled)
            target, pooled_target = self.projections(average, aimed)
            pairs = self.morphing.pairs(
                keys.named(key, f'view{direction}'),
                prediction,
                target,
                keys=keys.named(batch['keys'], f'morphing{direction}'),
                images=aimed,
                grid=self.grid,
            )
            distances = [self.distance(p, t).mean() for p, t in pairs]
            token_losses.append(sum(distances) / len(distances))
            pooled_losses.append(cosine_distance(pooled_prediction, pooled_target).mean())
        token, pooled = (sum(losses) / 2 for losses in (token_losses, pooled_losses))
        loss = self.token_weight * token + self.pooled_weight * pooled
        return loss, {'token_loss': token, 'pooled_loss': pooled}, {}

    def projections(
        self, params: Any, images: jax.Array, drop_path_keys: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Projections float32 of every token [B,N,P] and of their mean [B,P]."""
        encoded = self.encode(params, images, keys=drop_path_keys)
        mean = encoded.tokens.mean(axis=1, dtype=jnp.float32)
        return (
            self._apply(params, 'token_projector', encoded.tokens),
            self._apply(params, 'pooled_projector', mean),
        )

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        target, given = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **given)
        return {'groups': groups} if groups else {}

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        images, own = batch['images'], keys.named(batch['keys'], 'morphing0')
        target, _ = self.projections(variables['ema'], images)
        return target, {'keys': own, 'images': images, 'grid': self.grid}

    def _apply(self, params: Any, head: str, x: jax.Array) -> jax.Array:
        return self._head().apply({'params': params[head]}, x)

    def _head(self) -> MLPHead:
        return MLPHead(
            self.hidden,
            self.projection,
            batch_norm=True,
            initialization=self.encoder.initialization,
            dtype=self.encoder.dtype,
        )
