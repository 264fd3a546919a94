"""What the methods share that predict targets at chosen places from a context, in latent space."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.losses import DISTANCES, SmoothL1, standardize_tokens
from mim_jax.masking import Blocks, mask_without
from mim_jax.models.predictors import Predictor
from mim_jax.morphing import morph
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import MorphedTargets
from mim_jax.panels import Sheets
from mim_jax.targets import TARGETS


@dataclasses.dataclass(frozen=True)
class JEPA(Masked, MorphedTargets):
    """The encoder sees some patches, a predictor says what the target has at others.

    A method adds `masking`, and what is predicted from what (`blocks`).

    target: of the whole image, one of TARGETS.
    standardize_target: every token of the target is brought to mean 0 and variance 1.
    distance: between the tokens of prediction and target, averaged over those predicted.
    morphing: groups are formed of all tokens of the target; a block's prediction and target are
      averaged over the members of a group that lie in the block.
    """

    target: Any = choice(TARGETS, 'ema')
    standardize_target: bool = True
    distance: Any = choice(DISTANCES, SmoothL1(beta=1.0))
    predictor: Predictor = dataclasses.field(default_factory=Predictor)

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes of the encoder, each with a context of its own."""
        return ('blocks',)

    def blocks(self, batch: Batch, step: jax.Array) -> dict[str, Blocks]:
        """What is seen and predicted in each of the `passes`."""
        drawn = keys.named(batch['keys'], 'mask')
        return {'blocks': self.masking(drawn, grid=self.grid, step=step)}

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jax.ShapeDtypeStruct((1, 1, self.encoder.width), 'float32')
        given = {'grid': self.grid, 'features': features, 'groups': len(self.passes)}
        return {'predictor': self.predictor.init(key, tokens, **given)['params']}

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        """Of the first pass."""
        return self.unseen(self.blocks(batch, step)[self.passes[0]])

    def unseen(self, blocks: Blocks) -> jax.Array:
        """Mask [B,N] of the patches that the encoder does not see."""
        return mask_without(blocks.visible, num_patches=self.num_patches)

    def finish(self, target: jax.Array) -> jax.Array:
        target = super().finish(target)
        return standardize_tokens(target, eps=1e-5) if self.standardize_target else target

    def context(self, params: Any, tokens: jax.Array) -> jax.Array:
        """What the predictor is given of the encoder's visible tokens [B,K,D]."""
        return tokens

    def predict(
        self,
        variables: Variables,
        batch: Batch,
        blocks: dict[str, Blocks],
        drop_path_keys: Any = None,
    ) -> dict[str, jax.Array]:
        """Predictions float32 [B,T,P,D] at the targets of every pass."""
        params, found = variables['params'], {}
        for group, (name, one) in enumerate(blocks.items()):
            own = keys.named(drop_path_keys, name)
            seen = self.encode(params, batch['images'], visible=one.visible, keys=own)
            found[name] = self.predictor.apply(
                {'params': params['predictor']},
                self.context(params, seen.tokens),
                visible=one.visible,
                targets=one.targets,
                counted=one.counted,
                grid=self.grid,
                group=group,
            )
        return found

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        blocks = self.blocks(batch, step)
        with jax.named_scope('target'):
            target = self.targets(variables, batch['images'])
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            predictions = self.predict(variables, batch, blocks, drop_path_keys)
        with jax.named_scope('morphing'):
            drawn = self.morphing.drawn(key, target, **self.morphed(variables, batch))
        losses = {}
        for name, one in blocks.items():
            each = [self.compare(predictions[name], one, *draw) for draw in drawn]
            losses[f'{name}_loss'] = jnp.mean(jnp.stack(each))
        loss = jnp.mean(jnp.stack(list(losses.values())))
        return loss, losses if len(losses) > 1 else {}, {}

    def compare(
        self, prediction: jax.Array, blocks: Blocks, target: jax.Array, groups: jax.Array | None
    ) -> jax.Array:
        """Mean distance of a prediction [B,T,P,D] to the target [B,N,D] at its places, within each
        block averaged over the groups [B,N] (None: token by token).
        """
        target = blocks.of(target)
        if groups is not None:
            within = blocks.groups(groups)
            prediction, target = morph(prediction, within), morph(target, within)
        return blocks.mean(self.distance(prediction, target))

    def health(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        predictions = self.predict(variables, batch, self.blocks(batch, step))
        prediction = jnp.concatenate([p.reshape(-1, p.shape[-1]) for p in predictions.values()])
        variances = self.variances(variables, batch, prediction)
        return {**super().health(variables, batch, key, step), **variances}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        blocks, sheets = self.blocks(batch, step), {}
        predictions = self.predict(variables, batch, blocks)
        target = self.targets(variables, batch['images'])
        for name, one in blocks.items():
            given = {'num_tokens': self.num_patches}
            shown = [panels.Mask(self.unseen(one), title='seen')]
            covered = jnp.moveaxis(one.covered(**given), 1, 0)
            for number, block in enumerate(covered, 1):
                title = f'target {number}' if len(covered) > 1 else 'predicted'
                shown.append(panels.Mask(~block, title=title))
            tokens, there = one.placed(predictions[name], **given)
            if hasattr(self.target, 'panels'):
                *raw, image = self.target.panels(tokens, batch['images'])
                shown += [*raw, image.replace(mask=there)]
            else:
                distances = jnp.where(there, self.distance(tokens, target), 0)
                shown.append(
                    panels.HeatMap(distances, title='distance where predicted, else black')
                )
            sheets[name] = shown
        groups = self.morphing.panels(target, **self.morphed(variables, batch))
        return {**sheets, 'groups': groups} if groups else sheets
