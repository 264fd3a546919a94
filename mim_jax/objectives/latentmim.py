"""Latent MIM (Wei, Gupta, Morgado, ECCV 2024, arXiv 2407.15837): masked modelling in latent space.

From a tenth of an image's patches a decoder says what the average of the encoder has at the others,
of which alone it sees anything; each has to be told from the others of its image.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.data import DataConfig, View
from mim_jax.losses import TokenContrast, standardize_channels, token_similarity
from mim_jax.masking import MASKINGS, RandomMasking
from mim_jax.models.heads import Projector
from mim_jax.models.patches import cut_at_random, size_of_cells
from mim_jax.models.predictors import QueryDecoder
from mim_jax.models.vit import Encoded
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import Morphed
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative, Pixels, Share, Width


@dataclasses.dataclass(frozen=True)
class LatentMIM(Masked, Morphed):
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

    needs = ('class_token',)
    averaged = ('encoder', 'projector')
    momentary = ('aimed_similarity',)
    num_grouped = Masked.num_hidden

    @property
    def needs_whole_batch(self) -> bool:
        return self.similarity_weight > 0  # the mean is one over the batch

    def views(self, data: DataConfig) -> dict[str, View]:
        plain = data.view()
        if not self.gap:
            return {'images': plain}
        size = size_of_cells(plain.image_size, patch_size=self.encoder.patch_size, gap=self.gap)
        return {'images': plain, 'cells': data.view(image_size=size)}

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
        draws, size = keys.named(batch['keys'], 'gap'), self.encoder.patch_size
        return cut_at_random(draws, batch['cells'], patch_size=size, gap=self.gap)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        with jax.named_scope('student'):
            places = self.places(self.mask(variables, batch, step))
            drop_path_keys = keys.named(batch['keys'], 'drop_path')
            prediction, visible = self.predict(variables['params'], batch, places, drop_path_keys)
        with jax.named_scope('target'):
            target, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            pairs = self.morphing.pairs(key, prediction, target, **given)
        losses = [self.contrast(standardize_channels(p), t).mean() for p, t in pairs]
        contrast = 2 * self.contrast.temperature * jnp.mean(jnp.stack(losses))
        aim = self.aimed_similarity(step)
        means = {'predicted': token_similarity(prediction), 'visible': token_similarity(visible)}
        penalty = sum((mean - aim) ** 2 for mean in means.values())
        metrics = {f'{name}_similarity': mean for name, mean in means.items()}
        metrics |= {'contrast_loss': contrast, 'aimed_similarity': aim}
        return contrast + self.similarity_weight * penalty, metrics, {}

    def predict(
        self, params: Any, batch: Batch, places: tuple[jax.Array, ...], drop_path_keys: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Predictions of the hidden patches and projections of the visible ones, [B,.,D]."""
        visible, hidden = places
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
        _, hidden = self.places(self.mask(variables, batch, jnp.int32(0)))
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
        _, hidden = places = self.places(mask)
        prediction, _ = self.predict(variables['params'], batch, places)
        target, given = self.grouped(variables, batch)
        logits = self.contrast.logits(standardize_channels(prediction), target)
        likely = jnp.diagonal(jax.nn.softmax(logits), axis1=-2, axis2=-1)
        likely = jax.vmap(lambda at, x: jnp.zeros(self.num_patches).at[at].set(x))(hidden, likely)
        cut = panels.Image(seen, title='patches with gaps between')
        shown = panels.Mask(mask, images=seen)
        sheet = [cut, shown, panels.HeatMap(likely, title='probability of the right patch')]
        given |= {'places': hidden, 'num_tokens': self.num_patches}
        groups = self.morphing.panels(target, **given)
        return {'matches': sheet} | ({'groups': [shown, *groups]} if groups else {})

    def _projector(self) -> Projector:
        options = {'norm': 'layer', 'activation': 'gelu', 'affine': True}
        options |= {'initialization': self.encoder.initialization, 'dtype': self.encoder.dtype}
        return Projector((self.hidden, self.hidden, self.encoder.width), **options)
