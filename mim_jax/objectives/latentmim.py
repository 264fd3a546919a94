"""Latent MIM (Wei, Gupta, Morgado, ECCV 2024, arXiv 2407.15837): masked modelling in latent space.

From a tenth of an image's patches a decoder says what the average of the encoder has at the others,
of which alone it sees anything; each has to be told from the others of its image.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.data import DataConfig, View
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import TokenContrast, unit
from mim_jax.masking import MASKINGS, RandomMasking, hidden_ids, visible_ids
from mim_jax.models.heads import Projector
from mim_jax.models.patches import cut_from_cells
from mim_jax.models.predictors import QueryDecoder
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.morphed import Morphed
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative, Pixels, Share, Width

DEVIATION_EPS = 1e-4


@dataclasses.dataclass(frozen=True)
class LatentMIM(Morphed):
    """The defaults are those of the released recipe.

    gap: pixels between patches at most: one is cut at random out of each cell that is so much
      larger both ways, so that neighbours do not tell each other's edges. 0: as usual.
    target_sees: the average sees the 'hidden' patches alone, or 'all'.
    hidden: width of the projector's two hidden layers.
    contrast: of a hidden patch's prediction among the targets at the hidden patches of its image.
    similarity_weight: of the squared difference between the mean cosine of two tokens of an image
      and what it should be, for predictions and for visible tokens.
    start_similarity, end_similarity: what it should be, along half a cosine over the run.
    morphing: groups hidden patches alone. A group's tokens have one target, which counts as often
      as it has tokens.
    """

    masking: Any = choice(MASKINGS, RandomMasking(ratio=0.895))
    gap: Pixels = 4
    target_sees: Literal['hidden', 'all'] = 'hidden'
    hidden: Width = 4096
    decoder: QueryDecoder = dataclasses.field(default_factory=QueryDecoder)
    contrast: TokenContrast = TokenContrast(temperature=0.2)
    similarity_weight: NotNegative = 0.1
    start_similarity: Share = 0.75
    end_similarity: Share = 0.25

    averaged = ('encoder', 'projector')
    momentary = ('aimed_similarity',)

    @property
    def needs_whole_batch(self) -> bool:
        return self.similarity_weight > 0  # the mean is one over the batch

    def views(self, data: DataConfig) -> dict[str, View]:
        plain = data.view()
        if not self.gap:
            return {'images': plain}
        height, width = (
            pixels + self.gap * patches
            for pixels, patches in zip(plain.image_size, self.grid, strict=True)
        )
        return {'images': plain, 'cells': data.view(image_size=(height, width))}

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if not encoder.class_token:
            raise UserError(
                'config.model.class_token = False, but Latent MIM needs it; set it to True.'
            )
        bound = super().bind(encoder, inputs, clock)
        self.morphing.check(bound.num_grouped, grid=False)
        return bound

    @property
    def num_grouped(self) -> int:
        return self.masking.count(self.grid)

    def init(self, key: jax.Array, images: Any) -> Variables:
        params = {'encoder': self.encoder.init(keys.named(key, 'encoder'), images)['params']}
        tokens = jnp.zeros((1, 1, self.encoder.width))
        projector = self._projector().init(keys.named(key, 'projector'), tokens)
        given = {'grid': self.grid, 'features': self.encoder.width}
        decoder = self.decoder.init(keys.named(key, 'decoder'), tokens, **given)
        return {
            'params': {**params, 'projector': projector['params'], 'decoder': decoder['params']}
        }

    def seen(self, batch: Batch) -> jax.Array:
        """Images [B,H,W,C] in [0, 1] of the patches that are cut out of the cells."""
        if not self.gap:
            return batch['images']
        draws = keys.named(batch['keys'], 'gap')
        shape = (self.grid[0] * self.grid[1], 2)
        corners = jax.vmap(lambda key: jax.random.randint(key, shape, 0, self.gap))(draws)
        size = self.encoder.patch_size
        return cut_from_cells(batch['cells'], corners, patch_size=size, gap=self.gap)

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.masking(keys.named(batch['keys'], 'mask'), grid=self.grid)

    def places(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of the visible and of the hidden patches, [B,K] and [B,H] int32."""
        mask = self.masking(keys.named(batch['keys'], 'mask'), grid=self.grid)
        num_hidden = self.masking.count(self.grid)
        visible = visible_ids(mask, num_visible=mask.shape[1] - num_hidden)
        return visible, hidden_ids(mask, num_hidden=num_hidden)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        with jax.named_scope('student'):
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction, visible = self.predict(variables, batch, drop_path_keys)
        with jax.named_scope('target'):
            target, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            pairs = self.morphing.pairs(key, prediction, target, **given)
        losses = [self.contrast(standardized_over_tokens(p), t).mean() for p, t in pairs]
        contrast = 2 * self.contrast.temperature * jnp.mean(jnp.stack(losses))
        aim = self.aimed_similarity(step)
        means = {'predicted': similarity(prediction), 'visible': similarity(visible)}
        penalty = sum((mean - aim) ** 2 for mean in means.values())
        metrics = {f'{name}_similarity': mean for name, mean in means.items()}
        metrics |= {'contrast_loss': contrast, 'aimed_similarity': aim}
        return contrast + self.similarity_weight * penalty, metrics, {}

    def predict(
        self, variables: Variables, batch: Batch, drop_path_keys: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Predictions of the hidden patches and projections of the visible ones, [B,.,D]."""
        params, (visible, hidden) = variables['params'], self.places(batch)
        encoded = self.encode(params, self.seen(batch), visible=visible, keys=drop_path_keys)
        projected = self.project(params, encoded)
        class_token, tokens = projected[:, 0], projected[:, 1:]
        given = {'visible': visible, 'hidden': hidden, 'class_token': class_token}
        decoder = {'params': params['decoder']}
        return self.decoder.apply(decoder, tokens, grid=self.grid, **given), tokens

    def project(self, params: Any, encoded: Encoded) -> jax.Array:
        """Projections float32 [B,1+N,D] of class token and patches."""
        return self._projector().apply({'params': params['projector']}, encoded.class_and_patches)

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The target, the average's projections [B,H,D] of the hidden patches."""
        average = jax.lax.stop_gradient(variables['ema'])
        _, hidden = self.places(batch)
        alone = self.target_sees == 'hidden'
        encoded = self.encode(average, self.seen(batch), visible=hidden if alone else None)
        target = self.project(average, encoded)[:, 1:]
        if not alone:
            target = jnp.take_along_axis(target, hidden[..., None], axis=1)
        return target, {'keys': keys.named(batch['keys'], 'morphing')}

    def aimed_similarity(self, step: jax.Array) -> jax.Array:
        """What the mean cosine of two tokens should be at `step`, float32 scalar."""
        share = 0.5 * (1 + jnp.cos(jnp.pi * self.progress(step)))
        return self.end_similarity + (self.start_similarity - self.end_similarity) * share

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        mask, seen = self.mask(variables, batch, step), self.seen(batch)
        _, hidden = self.places(batch)
        prediction, _ = self.predict(variables, batch)
        target, given = self.grouped(variables, batch)
        logits = self.contrast.logits(standardized_over_tokens(prediction), target)
        likely = jnp.diagonal(jax.nn.softmax(logits), axis1=-2, axis2=-1)
        likely = jax.vmap(lambda at, x: jnp.zeros(mask.shape[1]).at[at].set(x))(hidden, likely)
        cut = panels.Image(seen, title='patches with gaps between')
        shown = panels.Mask(mask, images=seen)
        sheet = [cut, shown, panels.HeatMap(likely, title='probability of the right patch')]
        given |= {'places': hidden, 'num_tokens': mask.shape[1]}
        groups = self.morphing.panels(target, **given)
        return {'matches': sheet} | ({'groups': [shown, *groups]} if groups else {})

    def _projector(self) -> Projector:
        options = {'norm': 'layer', 'activation': 'gelu', 'affine': True}
        options |= {'initialization': self.encoder.initialization, 'dtype': self.encoder.dtype}
        return Projector((self.hidden, self.hidden, self.encoder.width), **options)


def standardized_over_tokens(tokens: jax.Array) -> jax.Array:
    """Tokens [B,N,D], float32, of which every channel has mean 0 and deviation 1 over each image's
    tokens (unbiased, plus 1e-4).
    """
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    variance = tokens.var(axis=1, keepdims=True, ddof=1)
    # The bound lets tokens that are all the same, as morphing may leave them, have a gradient.
    return centred / (jnp.sqrt(jnp.maximum(variance, 1e-12)) + DEVIATION_EPS)


def similarity(tokens: jax.Array) -> jax.Array:
    """Mean cosine of two tokens of an image, of itself too, over all pairs of tokens [B,N,D]."""
    return jnp.mean(jnp.sum(unit(tokens).mean(axis=1) ** 2, axis=-1))
