"""Clustering the tokens: K-means, K-medoids and, to compare with, groups drawn at random.

The number of groups is a traced scalar: N candidates stand for the clusters, of which the first
`num_groups` are live.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from mim_jax.losses import unit
from mim_jax.morphing.average import group_sums
from mim_jax.morphing.base import ByNumber
from mim_jax.ranges import Repeats


@dataclasses.dataclass(frozen=True)
class KMeans(ByNumber):
    """K-means by Lloyd's algorithm, from distinct tokens drawn at random; see `kmeans_groups`.

    iterations: updates of the centres.
    normalize: tokens are scaled to unit length first, so that distances order as the cosines of
      bipartite matching do; False takes them as they are.
    """

    iterations: Repeats = 10
    normalize: bool = True

    draws = True

    def form(self, tokens, num_groups, *, keys, images, grid):
        first = permutations(keys, tokens.shape[1])
        if self.normalize:
            tokens = unit(tokens)
        return kmeans_groups(tokens, num_groups, first=first, iterations=self.iterations)


@dataclasses.dataclass(frozen=True)
class KMedoids(ByNumber):
    """K-medoids on cosine distance, from distinct tokens drawn at random; see `kmedoids_groups`.

    iterations: updates of the medoids.
    """

    iterations: Repeats = 10

    draws = True

    def form(self, tokens, num_groups, *, keys, images, grid):
        first = permutations(keys, tokens.shape[1])
        return kmedoids_groups(tokens, num_groups, first=first, iterations=self.iterations)


@dataclasses.dataclass(frozen=True)
class RandomGroups(ByNumber):
    """Groups without regard to the tokens: as many tokens as groups, drawn without replacement,
    begin one each, and every other token joins one of them, all equally likely.
    """

    draws = True

    def form(self, tokens, num_groups, *, keys, images, grid):
        def one(key):
            first, rest = jax.random.split(key)
            place = jax.random.permutation(first, tokens.shape[1])
            joined = jax.random.randint(rest, place.shape, 0, num_groups)
            return jnp.where(place < num_groups, place, joined)

        return jax.vmap(one)(keys).astype(jnp.int32)


def permutations(keys, size):
    """A random order of 0..size-1 for each of keys [B]: int32 [B, size]."""
    return jax.vmap(lambda key: jax.random.permutation(key, size))(keys).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames='iterations')
def kmeans_groups(tokens, num_groups, *, first, iterations):
    """Lloyd's algorithm with Euclidean distance.

    Args:
      tokens: [B, N, D] float32.
      num_groups: int32 scalar K, may be traced.
      first: [B, N] int32; the tokens at its first K entries are the first centres.
      iterations: how often tokens are assigned to their nearest centre (ties: the lowest number)
        and centres moved to the mean of their tokens; a centre without tokens stays.

    Returns:
      groups [B, N] int32 in 0..K-1: the nearest of the last centres.
    """
    # Distances do not change; what all tokens share would cost digits.
    tokens = tokens - jnp.mean(tokens, axis=1, keepdims=True)
    centres = jnp.take_along_axis(tokens, first[..., None], axis=1)
    groups = nearest(tokens, centres, live=num_groups)
    return lloyd(tokens, groups, centres, live=num_groups, iterations=iterations)


def lloyd(points, groups, centres, *, live, iterations):
    """Moves centres to the means of their groups and points to the nearest centre, `iterations`
    times; points and centres [B, N, D], groups [B, N], the first `live` centres count.
    """

    def update(_, carry):
        groups, centres = carry
        sums, sizes = group_sums(points, groups)
        sizes = sizes[..., None]
        centres = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1.0), centres)
        return nearest(points, centres, live=live), centres

    return lax.fori_loop(0, iterations, update, (groups, centres))[0]


def nearest(points, centres, *, live):
    """Number of the nearest of the first `live` centres, [B, N] int32; ties: the lowest."""
    products = jnp.einsum('bnd,bkd->bnk', points, centres, precision=lax.Precision.HIGHEST)
    # Of |x - c|**2 what depends on c.
    distances = jnp.sum(centres**2, axis=-1)[:, None, :] - 2 * products
    distances = jnp.where(jnp.arange(centres.shape[1]) < live, distances, jnp.inf)
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames='iterations')
def kmedoids_groups(tokens, num_groups, *, first, iterations):
    """Alternating K-medoids with distance 1 - cosine.

    Args:
      tokens: [B, N, D] float32.
      num_groups: int32 scalar K, may be traced.
      first: [B, N] int32; the tokens at its first K entries are the first medoids.
      iterations: how often tokens are assigned to their nearest medoid (ties: the lowest number)
        and each group's medoid becomes the one of its tokens that is nearest to all of them (ties:
        the lowest place); a medoid without tokens stays.

    Returns:
      groups [B, N] int32 in 0..K-1: the nearest of the last medoids.

    Source: Park and Jun, Expert Systems with Applications 36, 2009 (the alternation; not PAM).
    """
    num_tokens = tokens.shape[1]
    index = jnp.arange(num_tokens)
    tokens = unit(tokens)
    cosines = jnp.einsum('bnd,bmd->bnm', tokens, tokens, precision=lax.Precision.HIGHEST)
    distances = 1.0 - cosines
    # Exactly symmetric, so that the two tokens of a pair tie.
    distances = (distances + jnp.swapaxes(distances, 1, 2)) / 2
    distances = jnp.where(jnp.eye(num_tokens, dtype=bool), 0.0, distances)

    def nearest_medoid(medoids):
        to_medoids = jnp.take_along_axis(distances, medoids[:, None, :], axis=2)
        to_medoids = jnp.where(index < num_groups, to_medoids, jnp.inf)
        return jnp.argmin(to_medoids, axis=-1).astype(jnp.int32)

    def update(_, medoids):
        groups = nearest_medoid(medoids)
        same = groups[:, :, None] == groups[:, None, :]
        total = jnp.sum(jnp.where(same, distances, 0.0), axis=-1)
        inside = groups[:, None, :] == index[None, :, None]  # [B, group, token]
        best = jnp.argmin(jnp.where(inside, total[:, None, :], jnp.inf), axis=-1)
        return jnp.where(jnp.any(inside, axis=-1), best.astype(jnp.int32), medoids)

    return nearest_medoid(lax.fori_loop(0, iterations, update, first))
