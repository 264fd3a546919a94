"""What is measured on the tokens of an image: every figure is one number per image, float32 [B].

Tokens [B,N,D] lie on a grid (h, w) with N = h * w. `directions` [C,D] are unit vectors, one per
class; `predicted` [B,N] are class numbers.
"""

import jax
import jax.numpy as jnp

from mim_jax.losses import unit


def cosines(tokens: jax.Array, directions: jax.Array) -> jax.Array:
    """Cosine [B,N,C] of every token with every direction; 0 for a token of norm zero."""
    return jnp.einsum('bnd,cd->bnc', unit(tokens), directions, precision='highest')


def accuracy(predicted: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of an image's tokens that say the image's class; labels [B]."""
    return (predicted == labels[:, None]).mean(axis=1)


def class_similarity(similarity: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over an image's tokens of `similarity` [B,N,C] to the image's class; labels [B]."""
    return jnp.take_along_axis(similarity, labels[:, None, None], axis=2)[..., 0].mean(axis=1)


def neighbour_agreement(predicted: jax.Array, *, grid: tuple[int, int]) -> jax.Array:
    """Share of an image's 4-neighbour pairs, each counted once, that say one class."""
    return _over_neighbours(predicted, jnp.equal, grid=grid)


def pair_agreement(predicted: jax.Array, *, num_classes: int) -> jax.Array:
    """Share of all pairs of different tokens of an image that say one class.

    It is what `neighbour_agreement` would be on average if the same predictions were strewn over
    the image at random: its chance level.
    """
    count = jax.nn.one_hot(predicted, num_classes).sum(axis=1)
    num = predicted.shape[1]
    return (count * (count - 1)).sum(axis=1) / (num * (num - 1))


def neighbour_cosine(tokens: jax.Array, *, grid: tuple[int, int]) -> jax.Array:
    """Mean cosine of an image's 4-neighbour tokens."""
    return _over_neighbours(unit(tokens), lambda a, b: (a * b).sum(axis=-1), grid=grid)


def pair_cosine(tokens: jax.Array) -> jax.Array:
    """Mean cosine of all pairs of different tokens of an image: `neighbour_cosine` by chance."""
    directions = unit(tokens)
    total, num = directions.sum(axis=1), tokens.shape[1]
    own = (directions**2).sum(axis=(1, 2))  # of every token with itself
    return ((total**2).sum(axis=1) - own) / (num * (num - 1))


def _over_neighbours(values, compare, *, grid):
    """Mean of compare(a, b) over the 4-neighbour pairs of values [B,N,...]."""
    h, w = grid
    field = values.reshape(len(values), h, w, *values.shape[2:])
    down = compare(field[:, 1:], field[:, :-1]).sum(axis=(1, 2))
    right = compare(field[:, :, 1:], field[:, :, :-1]).sum(axis=(1, 2))
    return (down + right) / ((h - 1) * w + h * (w - 1))
