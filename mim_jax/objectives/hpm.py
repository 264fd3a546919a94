"""Hard Patches Mining (Wang et al., CVPR 2023, arXiv 2304.05919).

A second decoder predicts which patches the first will find hard to reconstruct. What the running
average of the whole network says of an image decides which of its patches are hidden: at random in
the beginning, more and more of the hardest as the run goes on.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import ranking_loss, standardized_square
from mim_jax.masking import RandomMasking, hardest_first, rising_count
from mim_jax.models.decoders import INPUT
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.mae import MAE
from mim_jax.panels import Sheets
from mim_jax.ranges import Examples, NotNegative, Number, Percent, Share
from mim_jax.targets import TARGETS, Pixels


@dataclasses.dataclass(frozen=True)
class HPM(MAE):
    """The defaults are those of the released recipe.

    masking: how many patches are hidden; which of them is said below.
    target: what is reconstructed; features of a `teacher` or of the average (`ema`) are the
      options of the released code, with `distance` the cosine.
    morphing: reconstruction and target are compared on group means, and the loss to be predicted
      for a patch is that of its group (the mean over draws): patches of one group have the same
      loss and say nothing of each other's rank.
    start_share, end_share: share of the hidden patches that are the hardest, before the run and in
      its last stage; it rises by equal steps from stage to stage (easy to hard).
    stage_*: how long a stage is, an epoch in the paper.
    learning: the loss predictor learns which of two losses is larger ('ranking', the paper's), or
      the losses themselves, standardised over the hidden patches of an image ('values').
    learning_weight: of that in the loss.
    """

    masking: RandomMasking = RandomMasking(ratio=0.75)
    target: Any = choice(TARGETS, Pixels(normalize=False))
    start_share: Share = 0.0
    end_share: Share = 0.5
    stage_steps: Number | None = None
    stage_epochs: NotNegative | None = 1.0
    stage_examples: Examples | None = None
    stage_percent: Percent | None = None
    learning: Literal['ranking', 'values'] = 'ranking'
    learning_weight: NotNegative = 1.0

    averaged = ('encoder', 'decoder', 'loss_decoder')
    momentary = ('hardest',)

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        bound = super().bind(encoder, inputs, clock)
        if clock is not None and bound.duration('stage') is None:
            raise UserError(
                'config.objective: the length of a stage is missing; set one of stage_epochs, '
                'stage_percent, stage_examples, stage_steps.'
            )
        return bound

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        params = super().init_predictor(key, features)
        # As many numbers per patch as it has pixels, whatever the target; their mean is the score.
        pixels = math.prod(self.encoder.patch_size) * self.inputs.channels
        second = super().init_predictor(keys.named(key, 'loss_decoder'), pixels)['decoder']
        params['loss_decoder'] = {k: v for k, v in second.items() if k not in INPUT}
        return params

    def decode(
        self, params: Any, encoded: Encoded, visible: jax.Array | None, *, name: str = 'decoder'
    ) -> jax.Array:
        """As in MAE; both decoders are fed the same tokens."""
        shared = {part: params['decoder'][part] for part in INPUT}
        return super().decode({name: {**params[name], **shared}}, encoded, visible, name=name)

    def scores(self, params: Any, encoded: Encoded, visible: jax.Array | None) -> jax.Array:
        """Which patches will have the larger losses, float32 [B,N], higher for larger ones."""
        return self.decode(params, encoded, visible, name='loss_decoder').mean(axis=-1)

    def whole_scores(self, variables: Variables, images: jax.Array) -> jax.Array:
        """What the average of the network says of images [B,H,W,C] of which it sees everything."""
        encoded = self.encode(variables['ema'], images)
        return jax.lax.stop_gradient(self.scores(variables['ema'], encoded, None))

    def num_hardest(self, step: jax.Array) -> jax.Array:
        """How many of the hidden patches are the hardest at `step`, int32 scalar."""
        count, shares = self.num_hidden, (self.start_share, self.end_share)
        stage, total = self.duration('stage'), self.clock.total_steps
        return rising_count(step, count=count, shares=shares, stage=stage, total=total)

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return hardest_first(
            keys.named(batch['keys'], 'mask'),
            self.whole_scores(variables, batch['images']),
            num_hardest=self.num_hardest(step),
            count=self.num_hidden,
        )

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        images, params = batch['images'], variables['params']
        with jax.named_scope('average'):
            mask = self.mask(variables, batch, step)
        with jax.named_scope('student'):
            visible, drop_path_keys = self.visible(mask), keys.named(batch['keys'], 'drop_path')
            encoded = self.encode(params, images, visible=visible, keys=drop_path_keys)
            prediction = self.decode(params, encoded, visible)
            scores = self.scores(params, encoded, visible)
        distances = jnp.mean(self.distances(variables, batch, key, prediction), axis=0)
        reconstruction = self.reduce(distances[None], mask)
        _, hidden = self.places(mask)
        losses = jnp.take_along_axis(jax.lax.stop_gradient(distances), hidden, axis=1)
        scores = jnp.take_along_axis(scores, hidden, axis=1)
        learned = ranking_loss if self.learning == 'ranking' else standardized_square
        learning = learned(scores, losses).mean()
        metrics = {
            'reconstruction_loss': reconstruction,
            'learning_loss': learning,
            'hardest': self.num_hardest(step).astype(jnp.float32),
        }
        return reconstruction + self.learning_weight * learning, metrics, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        images, mask = batch['images'], self.mask(variables, batch, step)
        prediction = self.predict(variables, batch, mask)
        losses = self.distance(prediction, self.targets(variables, images))
        losses = jnp.where(mask, losses, 0)  # nobody asked for the others
        hardness = [
            panels.HeatMap(self.whole_scores(variables, images), title='predicted to be hard'),
            panels.Mask(mask),
            panels.HeatMap(losses, title='loss where hidden, else black'),
        ]
        return {**super().pictures(variables, batch, key, step), 'hardness': hardness}
