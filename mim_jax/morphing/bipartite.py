"""Bipartite soft matching (Token Merging, Bolya et al., ICLR 2023) on the matrix of inner products.

The cosine between two group means equals that between two group sums, so after one product of all
tokens with all tokens every step works on an N x N matrix: the feature width is out of the loop.
All images share the number of live tokens, a traced scalar, so one compiled loop serves every draw.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.morphing import pairs
from mim_jax.morphing.average import indicator_matmul
from mim_jax.morphing.base import Grouping
from mim_jax.morphing.bipartite_features import feature_groups
from mim_jax.morphing.bipartite_pallas import is_faster, pallas_groups
from mim_jax.morphing.matching import checked, evened, merge_repeatedly, new_positions, sides


@dataclasses.dataclass(frozen=True)
class Bipartite(Grouping):
    """Repeated bipartite soft matching on the tokens, see `bipartite_groups`.

    protect_first: the first patch never joins another. The released code of DTM does this, although
      the class token that it was meant for is no longer in the list.
    exact: False compares in plain float32, which is faster with many tokens; see docs/morphing.md.
    kernel: 'pallas' takes all steps of an image in one kernel, for TPUs and NVIDIA GPUs; the groups
      are the same. 'auto' is 'pallas' where that was measured to be faster, 'xla' elsewhere.
    """

    protect_first: bool = True
    exact: bool = True
    kernel: Literal['auto', 'xla', 'pallas'] = 'auto'

    def __post_init__(self):
        if self.kernel == 'pallas' and not self.exact:
            raise ValueError("kernel 'pallas' has the exact form alone: set exact to True")

    @property
    def protected(self):
        return int(self.protect_first)

    def __call__(self, tokens, schedule, *, keys=None, images=None, grid=None):
        return bipartite_groups(
            tokens,
            *schedule,
            protect_first=self.protect_first,
            exact=self.exact,
            kernel=self.kernel,
        )

    def title(self, num_tokens, schedule):
        steps = schedule[1]
        return f'{super().title(num_tokens, schedule)}, {steps} step{"s" if steps > 1 else ""}'


def bipartite_groups(
    tokens, tokens_per_step, num_steps, *, protect_first, exact=True, kernel='auto'
):
    """Groups similar tokens of each image by repeated bipartite soft matching.

    In each step, with the t current tokens in order, the even positions are set A and the odd ones
    set B. The r_eff = min(tokens_per_step, (t - p) // 2) tokens of A with the highest cosine to
    their best token of B join it (ties: the lower position); p is 1 with a protected token, else 0.
    A group's feature is the mean of the original tokens in it. The new order is what remains of A,
    in its positional order with a protected token and by descending best cosine without, then B.

    Args:
      tokens: [B, N, D], any float dtype, finite; taken as float32 and compared more finely than
        float32 (see `pairs.py`). A token of norm zero has cosine zero with every other. The groups
        carry no gradient.
      tokens_per_step: r, int32 scalar, may be traced; 0 joins nothing.
      num_steps: k, int32 scalar, may be traced.
      protect_first: whether position 0, which is always in A, never joins another token: it stays
        alone.
      exact: False compares in plain float32 (`bipartite_features.py`): faster, the more so the more
        tokens there are, and near-equal cosines may be ordered otherwise.
      kernel: 'pallas' is the exact form in one kernel (`bipartite_pallas.py`); see `Bipartite`.

    Returns:
      groups [B, N] int32: for every token the number of its group, 0..n-1 in the order in which the
      merged token list stands at the end.

    Raises:
      ValueError: `tokens` is not [B, N, D].
      UserError: the kernel cannot run here, or not with as many tokens.
    """
    if kernel == 'auto':
        kernel = 'pallas' if exact and is_faster(tokens.shape[1]) else 'xla'
    form = pallas_groups if kernel == 'pallas' else _groups if exact else feature_groups
    return form(*checked(tokens, tokens_per_step, num_steps, protect_first))


@jax.jit
def _groups(tokens, tokens_per_step, num_steps, protected):
    return merge_repeatedly(
        evened(jnp.stack(pairs.gram(tokens)), 2, 3),
        tokens_per_step,
        num_steps,
        shape=tokens.shape[:2],
        protected=protected,
        match=_match,
        fold=_fold,
    )


def _match(products, *, live, merges, protected):
    """One step's matching by `new_positions`, on inner products [2, B, N, N]."""
    high, low = products
    norms = pairs.inverse_sqrt(*jnp.diagonal(products, axis1=-2, axis2=-1))
    similarity, rest = pairs.cosines(
        high[:, 0::2, 1::2],
        low[:, 0::2, 1::2],
        [x[:, 0::2, None] for x in norms],
        [x[:, None, 1::2] for x in norms],
    )
    return new_positions(similarity, rest, live=live, merges=merges, protected=protected)


def _fold(products, position, kept):
    """Moves rows and columns of [2, B, N, N] to their new positions; those that meet are added.

    Every sum is exact (see `pairs.gram`), so both forms give the same matrix.
    """
    return lax.platform_dependent(products, position, kept, cpu=_fold_scatter, default=_fold_matmul)


def _fold_scatter(products, position, _):
    size = position.shape[-1]

    def one(matrix, position):
        index = (position[:, None] * size + position[None, :]).reshape(-1)
        total = jnp.zeros_like(matrix).reshape(-1)
        total = total.at[index].add(matrix.reshape(-1), mode='promise_in_bounds')
        return total.reshape(matrix.shape)

    per_image = jax.vmap(one)
    return jax.vmap(per_image, in_axes=(0, None))(products, position)


def _fold_matmul(products, position, kept):
    products = jnp.swapaxes(_fold_rows(products, position, kept), -1, -2)
    return _fold_rows(products, position, kept)


def _fold_rows(products, position, kept):
    """Set A by a product with a 0/1 matrix; B keeps its order, so that it only moves as a whole."""
    num_tokens = position.shape[-1]
    position_of_a, _ = sides(position, 1)
    place = jnp.arange(num_tokens)[None, :, None] == position_of_a[:, None]
    of_a, of_b = sides(products, 2)
    moved = jax.vmap(indicator_matmul, in_axes=(None, 0))(place, of_a)
    rest = jnp.pad(of_b, ((0, 0), (0, 0), (0, num_tokens // 2), (0, 0)))
    return moved + jnp.roll(rest, kept, axis=-2)
