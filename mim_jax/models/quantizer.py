"""Vector quantisation on the unit sphere: a codebook that follows the averages of its members.

Source: the quantiser of VQ-KD (Peng et al., "BEiT v2", arXiv 2208.06366; microsoft/unilm, beit2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.losses import unit
from mim_jax.ranges import Count, Fraction, Repeats, Width

# A codebook is a dict: `codes` [K,d] float32 of unit length; `usage` [K] float32, the running count
# of tokens per code in a batch; `ready`, bool scalar, False until k-means has placed the codes.
Codebook = dict[str, jax.Array]


def nearest_code(tokens, codes):
    """The code most similar to each token: tokens [...,d], codes [K,d] to int32 [...].

    By cosine, of whatever length the tokens are (codes are unit length); ties: the lower number.
    """
    similarity = jnp.einsum(
        '...d,kd->...k', tokens.astype(jnp.float32), codes, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The codebook's config section and its pure functions.

    num_codes, width: K codes of `width` numbers.
    decay: of the average that a code is of its members' means.
    kmeans_iterations: with which the first batch places the codes.
    """

    num_codes: Count = 8192
    width: Width = 32
    decay: Fraction = 0.99
    kmeans_iterations: Repeats = 10

    def init(self, key) -> Codebook:
        """Random codes, not `ready`."""
        codes = unit(jax.random.normal(key, (self.num_codes, self.width)))
        return {'codes': codes, 'usage': jnp.zeros(self.num_codes), 'ready': jnp.zeros((), bool)}

    def prepare(self, book: Codebook, tokens, *, key) -> Codebook:
        """The codebook, placed by spherical k-means on unit `tokens` [M,d] where it is not ready.

        The first centres are tokens drawn without replacement (with, where M < K); a centre
        without members stays.
        """

        tokens = jnp.asarray(tokens, jnp.float32)

        def place(book):
            num_tokens = tokens.shape[0]
            chosen = jax.random.choice(
                key, num_tokens, (self.num_codes,), replace=num_tokens < self.num_codes
            )

            def iteration(_, carry):
                codes, _ = carry
                means, counts = self._means(tokens, nearest_code(tokens, codes))
                return jnp.where(counts[:, None] > 0, means, codes), counts

            start = tokens[chosen], jnp.zeros(self.num_codes)
            codes, counts = jax.lax.fori_loop(0, self.kmeans_iterations, iteration, start)
            return {'codes': codes, 'usage': counts, 'ready': jnp.ones((), bool)}

        return jax.lax.cond(book['ready'], lambda book: book, place, book)

    def update(self, book: Codebook, tokens, ids) -> Codebook:
        """The codebook after unit tokens [M,d] took the codes `ids` [M]; unused codes stay."""
        means, counts = self._means(tokens, ids)
        means = jnp.where(counts[:, None] > 0, means, book['codes'])
        codes = unit(self.decay * book['codes'] + (1 - self.decay) * means)
        usage = self.decay * book['usage'] + (1 - self.decay) * counts
        return {'codes': codes, 'usage': usage, 'ready': book['ready']}

    def _means(self, tokens, ids):
        """Unit means [K,d] of each code's tokens, and their counts [K].

        By a matrix product: a scatter would add in another order at every run on a GPU.
        """
        member = jax.nn.one_hot(ids, self.num_codes)
        total = jnp.einsum('mk,md->kd', member, tokens, precision=jax.lax.Precision.HIGHEST)
        return unit(total), member.sum(axis=0)
