"""Norms of the parts of the parameters, each block of the encoder by itself."""

from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.sharding import path_name

BLOCKS = 'encoder/blocks/'


def names(tree: Any) -> tuple[str, ...]:
    """What `norms` are of: 'block_01', … of the encoder's blocks, 'encoder' of what else it has,
    and the other top-level parts. `tree` is that of the parameters, or of some parts of them.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for name in _of(path, leaf):
            found[name] = None
    return tuple(found)


def norms(tree: Any) -> jax.Array:
    """float32 [G] by the `names` of `tree`."""
    squares = dict.fromkeys(names(tree), 0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        of = _of(path, leaf)
        axes = tuple(range(1 if len(of) > 1 else 0, leaf.ndim))
        sums = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes).reshape(-1)
        for name, value in zip(of, sums, strict=True):
            squares[name] += value
    return jnp.sqrt(jnp.stack(list(squares.values())))


def ratios(updates: Any, params: Any) -> jax.Array:
    """Norm of the update over the norm of the parameters, float32 [G]; 0 where these are 0."""
    update, param = norms(updates), norms(params)
    return jnp.where(param > 0, update / jnp.where(param > 0, param, 1.0), 0.0)


def _of(path: tuple, leaf: Any) -> list[str]:
    """The name of an array, or one for each of the blocks that it has stacked."""
    name = path_name(path)
    if name.startswith(BLOCKS):
        return [f'block_{number:02}' for number in range(1, leaf.shape[0] + 1)]
    return [name.partition('/')[0]]
