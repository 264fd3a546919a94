"""Visual words that are tokens of the last steps: a queue, and soft assignment to it, as in MOCA.

Source: MOCA (Gidaris et al., TMLR 2024) and OBoW (Gidaris et al., CVPR 2021), the released code.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.losses import unit
from mim_jax.ranges import Count, Fraction, Number, Positive

# A word book is a dict: `words` [K,D] float32 of unit length; `oldest`, int32 scalar, the place of
# the next to be replaced; `spread`, float32 scalar, the average of how far the nearest word stands
# out.
Wordbook = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class WordQueue:
    """The word book's config section and its pure functions.

    num_words: K, a multiple of num_new.
    num_new: words that each step replaces, the oldest, by tokens of different images.
    sharpness: an assignment is the softmax of cosines times it over their spread.
    decay: of the average `spread`; it moves once for each view.
    border: patches at the edge of an image that are no words and do not count in its bag of words.
    """

    num_words: Count = 4096
    num_new: Count = 32
    sharpness: Positive = 10.0
    decay: Fraction = 0.99
    border: Number = 2

    def __post_init__(self):
        if self.num_words % self.num_new:
            raise ValueError(
                f'num_words = {self.num_words} is not a multiple of num_new = {self.num_new}.'
            )

    def init(self, key, width) -> Wordbook:
        """Random words of `width` numbers, none of them negative."""
        words = unit(jnp.maximum(jax.random.normal(key, (self.num_words, width)), 0))
        return {'words': words, 'oldest': jnp.int32(0), 'spread': jnp.float32(0.5)}

    def check(self, grid):
        """Raises UserError where no patch of a grid (h, w) is within the border."""
        if 2 * self.border >= min(grid):
            raise UserError(
                f'config.objective.words.border = {self.border}: of {grid[0]}x{grid[1]} patches '
                'none would be left; lower it.'
            )

    def bag(self, codes, *, grid):
        """Which words an image has, [B,K], from those of its patches [B,N,K]: sums to 1."""
        return codes[:, self.inner(grid)].mean(axis=1)

    def alike(self, codes):
        """Groups [B,N] int32 of the patches that are most of all one word, by codes [B,N,K]: a
        word is called by its first patch.
        """
        words = codes.argmax(axis=-1)
        return (words[:, :, None] == words[:, None]).argmax(axis=-1).astype(jnp.int32)

    def inner(self, grid):
        """Places int32 [M] of the patches of a grid (h, w) within the border."""
        edge = self.border
        rows = jnp.arange(edge, grid[0] - edge, dtype=jnp.int32)
        return (rows[:, None] * grid[1] + jnp.arange(edge, grid[1] - edge)).reshape(-1)

    def assign(self, book: Wordbook, tokens):
        """Of tokens [...,N,D] which words they are, float32 [...,N,K], and how far the nearest
        word stands out from their mean, a scalar.
        """
        cosines = self._cosines(book, tokens)
        codes = jax.nn.softmax(cosines * (self.sharpness / book['spread']), axis=-1)
        return codes, (cosines.max(axis=-1) - cosines.mean(axis=-1)).mean()

    def update(self, book: Wordbook, tokens, spreads, *, key, grid) -> Wordbook:
        """The word book after a step. tokens [B,N,D]: of which new words are drawn. spreads: the
        scalars that `assign` gave of each view.
        """
        for_images, for_places = jax.random.split(key)
        batch = len(tokens)
        places = jax.random.choice(for_places, self.inner(grid), (batch, 1, 1))
        ours = unit(jnp.take_along_axis(tokens, places, axis=1)[:, 0])
        few = batch < self.num_new
        images = jax.random.choice(for_images, batch, (self.num_new,), replace=few)
        # By a matrix product: of a batch that is split over devices only the new words are sent.
        chosen = jax.nn.one_hot(images, batch)
        new = jnp.einsum('wb,bd->wd', chosen, ours, precision=jax.lax.Precision.HIGHEST)
        words = jax.lax.dynamic_update_slice(book['words'], new, (book['oldest'], 0))
        spread = book['spread']
        for found in spreads:
            spread = self.decay * spread + (1 - self.decay) * found
        oldest = (book['oldest'] + self.num_new) % self.num_words
        return {'words': words, 'oldest': oldest, 'spread': spread}

    def _cosines(self, book, tokens):
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum('...nd,kd->...nk', unit(tokens), book['words'], precision=highest)
