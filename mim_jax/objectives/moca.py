"""MOCA (Gidaris et al., TMLR 2024, arXiv 2307.09361): predict masked online codebook assignments.

The running average of the network says which visual words the patches of an image are; the words
are its own tokens of the last steps. From a few patches the network predicts the bag of words of
another view, and the word of every patch that a small decoder is asked for. Classifiers of words
that change all the time are generated from the words.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.data import SECOND_COLORS, Colors, DataConfig, View
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import divergence
from mim_jax.masking import ComplementaryMasking, mask_without
from mim_jax.models.completion import CompletionDecoder
from mim_jax.models.heads import WeightGenerator
from mim_jax.models.vit import ViT
from mim_jax.models.wordbook import Wordbook, WordQueue
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.morphed import Morphed
from mim_jax.panels import Sheets
from mim_jax.ranges import Depth, NotNegative, Positive

VIEWS = ('images', 'second')


@dataclasses.dataclass(frozen=True)
class MOCA(Morphed):
    """The defaults are those of the released recipe; the first view has the colours of `data`.

    masking: what the encoder sees of a view in two rounds, and what it is asked for in both.
    second_colors: of the second view, which has a crop and a flip of its own.
    words: the queue of visual words.
    dense_layer: the decoder gets patch tokens after so many blocks, and the mean of the last ones.
    decoder: its width, blocks and heads.
    generator_ratio: hidden width of the weight generators over the encoder's.
    sharpness: of predictions; scores are features times it times generated weights of norm 1.
    bag_weight, word_weight: of the two losses.
    morphing: groups the patches of the decoder by their words, in each round.
    """

    masking: ComplementaryMasking = ComplementaryMasking()
    second_colors: Colors = SECOND_COLORS
    words: WordQueue = WordQueue()
    dense_layer: Depth = 8
    decoder: CompletionDecoder = CompletionDecoder(depth=2)
    generator_ratio: Positive = 2.0
    sharpness: Positive = 3.0
    bag_weight: NotNegative = 0.5
    word_weight: NotNegative = 0.5

    averaged = ('encoder',)
    needs_whole_batch = True  # new words are drawn from it

    def views(self, data: DataConfig) -> dict[str, View]:
        return {'images': data.view(), 'second': data.view(colors=self.second_colors)}

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        bound = super().bind(encoder, inputs, clock)
        if not self.dense_layer <= encoder.depth:
            raise UserError(
                f'config.objective.dense_layer = {self.dense_layer}: the encoder has '
                f'{encoder.depth} blocks.'
            )
        self.words.check(bound.grid)
        return bound

    @property
    def num_grouped(self) -> int:
        first, second, asked = self.masking.counts(self.grid)
        return min(first, second) + asked

    def init(self, key: jax.Array, images: Any) -> Variables:
        params = {'encoder': self.encoder.init(keys.named(key, 'encoder'), images)['params']}
        words = self.words.init(keys.named(key, 'words'), self.encoder.width)
        for name, width in (('bag', self.encoder.width), ('word', self.decoder.width)):
            drawn = self._generator(width).init(keys.named(key, name), words['words'])
            params[f'{name}_generator'] = drawn['params']
        tokens = jnp.zeros((1, 1, self.encoder.width))
        decoder = self.decoder.init(keys.named(key, 'decoder'), tokens, grid=self.grid)
        return {'params': params | {'decoder': decoder['params']}, 'state': {'wordbook': words}}

    def rounds(self, batch: Batch, view: str) -> list[tuple[jax.Array, jax.Array]]:
        """For each round the places seen [B,K] and asked for [B,A] of a view."""
        return self.masking.rounds(keys.named(batch['keys'], f'mask {view}'), grid=self.grid)

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        """What the first round hides of the first view."""
        return mask_without(self.rounds(batch, 'images')[0][0], num_patches=self.num_patches)

    def teach(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, ...]:
        """Of whole images the average's tokens [B,N,D], their words [B,N,K] and the spread."""
        tokens = self.encode(variables['ema'], images).tokens.astype(jnp.float32)
        found = tokens, *self.words.assign(variables['state']['wordbook'], tokens)
        return jax.lax.stop_gradient(found)

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params, book = variables['params'], variables['state']['wordbook']
        with jax.named_scope('target'):
            taught = [self.teach(variables, batch[view]) for view in VIEWS]
            bags = [self.words.bag(codes, grid=self.grid) for _, codes, _ in taught]
        bag_losses, word_losses = [], []
        for view, (_, codes, _), other in zip(VIEWS, taught, bags[::-1], strict=True):
            for i, places in enumerate(self.rounds(batch, view)):
                own = keys.named(batch['keys'], f'{view} {i}')
                with jax.named_scope('student'):
                    mean, features = self.student(params, batch[view], *places, own)
                scores = self.scores(params, 'bag_generator', mean, book)
                bag_losses.append(divergence(other, scores).mean())
                target = jnp.take_along_axis(codes, jnp.concatenate(places, 1)[..., None], axis=1)
                draw, own = keys.named(key, f'{view} {i}'), keys.named(own, 'morphing')
                for p, t in self.morphing.pairs(draw, features, target, keys=own):
                    scores = self.scores(params, 'word_generator', p, book)
                    word_losses.append(divergence(t, scores).mean())
        # The released code takes twice the mean over the rounds, of both views together.
        bag, word = (2 * jnp.mean(jnp.stack(losses)) for losses in (bag_losses, word_losses))
        tokens = jnp.where(jax.random.bernoulli(keys.named(key, 'view')), *(t[0] for t in taught))
        spreads, drawn = [spread for *_, spread in taught], keys.named(key, 'words')
        state = {'wordbook': self.words.update(book, tokens, spreads, key=drawn, grid=self.grid)}
        loss = self.bag_weight * bag + self.word_weight * word
        return loss, {'bag_loss': bag, 'word_loss': word}, state

    def student(
        self, params: Any, images: jax.Array, seen: jax.Array, asked: jax.Array, own: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """From the patches `seen` [B,K] of a view the mean of their tokens [B,D], and features
        [B,K+A,W] of these and of the patches `asked` [B,A], float32. own: typed keys [B].
        """
        block, drop_path_keys = self.dense_layer, keys.named(own, 'drop')
        found = self.encode(params, images, visible=seen, keys=drop_path_keys, layers=(block,))
        mean = found.tokens.mean(axis=1, dtype=jnp.float32)
        tokens, decoder = found.layers[block].tokens, {'params': params['decoder']}
        places = {'seen': seen, 'asked': asked, 'grid': self.grid}
        return mean, self.decoder.apply(decoder, tokens, mean, **places)

    def scores(self, params: Any, name: str, features: jax.Array, book: Wordbook) -> jax.Array:
        """Of features [...,W] by the generator `name` for the words of `book`, [...,K]."""
        generator = self._generator(features.shape[-1])
        weights = generator.apply({'params': params[name]}, book['words'])
        return self.sharpness * jnp.einsum('...d,kd->...k', features, weights)

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The words of the first view's patches, in its first round."""
        places = jnp.concatenate(self.rounds(batch, 'images')[0], axis=1)[..., None]
        codes = self.teach(variables, batch['images'])[1]
        own = keys.named(keys.named(batch['keys'], 'images 0'), 'morphing')
        return jnp.take_along_axis(codes, places, axis=1), {'keys': own}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        (first, asked), (second, _) = self.rounds(batch, 'images')
        words = self.words.alike(self.teach(variables, batch['images'])[1])
        titled = {'seen first': first, 'seen second': second, 'asked for in both': asked}
        sheet = [
            panels.Mask(mask_without(places, num_patches=self.num_patches), title=title)
            for title, places in titled.items()
        ]
        sheet.append(panels.Groups(words, title='patches of a word'))
        sheet.append(panels.Image(batch['second'], title='second view'))
        target, given = self.grouped(variables, batch)
        places = {'places': jnp.concatenate([first, asked], 1), 'num_tokens': self.num_patches}
        groups = self.morphing.panels(target, **places, **given)
        return {'words': sheet} | ({'groups': groups} if groups else {})

    def _generator(self, features: int) -> WeightGenerator:
        hidden = int(self.generator_ratio * self.encoder.width)
        return WeightGenerator(hidden, features, self.encoder.initialization, self.encoder.dtype)
