"""Where each array of a training state lives on the mesh: by its path, its shape, and the rules of
the config.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import UserError
from mim_jax.sharding import MeshConfig, path_name

# Which dimension of a parameter is split over `tensor` (counted from the end); the first match
# wins. Megatron's pattern: the first matrix of a pair by columns, the second by rows, so that each
# pair needs one reduction.
TENSOR_RULES = (
    (r'attention/(qkv|query|key|value)/(kernel|bias)$', -2),  # [..., heads, head width]
    (r'attention/out/kernel$', -3),  # [heads, head width, D]
    (r'mlp/fc1/(kernel|bias)$', -1),
    (r'mlp/fc2/kernel$', -2),
)
# Of what a chip holds of the state: so much may lie whole on every chip without a word.
LITTLE = 0.05


def state_shardings(state: Any, mesh: Mesh, config: MeshConfig) -> Any:
    """A NamedSharding for every array of an abstract state: as the first of `config.rules` says
    whose expression its path has, else as `partition` does.

    Raises UserError where a rule does not fit an array that it is for, or is for none.
    """
    used = set()

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        number = _rule(name, config)
        if number is None:
            spec = partition(name, leaf.shape, mesh, min_shard_size=config.min_shard_size)
        else:
            used.add(number)
            spec = _ruled(name, leaf.shape, mesh, *config.rules[number])
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(place, state)
    for number, (expression, _) in enumerate(config.rules):
        if number not in used:
            raise UserError(
                f'config.mesh.rules: {expression!r} places nothing: no array has such a path, or '
                'rules before it place all that do; `python -m mim_jax.preflight --parameters`, '
                'without this rule, lists the paths.'
            )
    return shardings


def partition(
    path: str, shape: tuple[int, ...], mesh: Mesh, *, min_shard_size: int
) -> PartitionSpec:
    """The PartitionSpec of one array: `tensor` by TENSOR_RULES, then `fsdp` on the largest
    dimension that divides.

    The leading depth axis of stacked blocks is never split: the scan over layers slices it.
    """
    spec: list = [None] * len(shape)
    if math.prod(shape) < min_shard_size:
        return PartitionSpec()
    dimension, ways = _tensor_dimension(path), mesh.shape['tensor']
    if dimension is not None and ways > 1 and shape[dimension] % ways == 0:
        spec[dimension] = 'tensor'
    first = 1 if re.search(r'(^|/)blocks/', path) else 0
    for dimension in sorted(range(first, len(shape)), key=lambda d: (-shape[d], d)):
        if (
            spec[dimension] is None
            and mesh.shape['fsdp'] > 1
            and shape[dimension] % mesh.shape['fsdp'] == 0
        ):
            spec[dimension] = 'fsdp'
            break
    return PartitionSpec(*spec)


def said_of_whole(state: Any, config: MeshConfig) -> str | None:
    """A sentence on the large arrays of an abstract state, with its shardings, that lie whole on
    every chip although an axis of the mesh is there to split them and no rule keeps them whole.

    None where there are none, or they are LITTLE.
    """
    held, whole = 0, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, mesh = path_name(path), leaf.sharding.mesh
        size = jnp.dtype(leaf.dtype).itemsize
        held += size * math.prod(leaf.sharding.shard_shape(leaf.shape))
        wanted = mesh.shape['fsdp'] > 1 or (
            mesh.shape['tensor'] > 1 and _tensor_dimension(name) is not None
        )
        large = leaf.size >= config.min_shard_size
        if wanted and large and leaf.sharding.is_fully_replicated and _rule(name, config) is None:
            whole[f'{name} {list(leaf.shape)}'] = size * leaf.size
    share = sum(whole.values()) / max(held, 1)
    if share <= LITTLE:
        return None
    axes = ' and '.join(f'{a}={mesh.shape[a]}' for a in ('fsdp', 'tensor') if mesh.shape[a] > 1)
    others = f' (nor of {len(whole) - 1} others)' if len(whole) > 1 else ''
    return (
        f'config.mesh: {share:.0%} of what a chip holds of the state lies whole on every chip, '
        f'{sum(whole.values()) / 2**20:.1f} MiB: no dimension of {max(whole, key=whole.get)} '
        f'divides by {axes}{others}; choose sizes that do, or use mesh.rules, which may also say '
        'that arrays stay whole.'
    )


def _tensor_dimension(path: str) -> int | None:
    return next((d for pattern, d in TENSOR_RULES if re.search(pattern, path)), None)


def _rule(path: str, config: MeshConfig) -> int | None:
    """Which of the config's rules is for an array, None if none is."""
    matching = (n for n, (expression, _) in enumerate(config.rules) if re.search(expression, path))
    return next(matching, None)


def _ruled(
    path: str, shape: tuple[int, ...], mesh: Mesh, expression: str, axes: tuple[str | None, ...]
) -> PartitionSpec:
    """What a rule says of an array. Raises UserError where that does not fit its shape."""
    where = f'config.mesh.rules: {expression!r} is for {path} {list(shape)}'
    if len(axes) > len(shape):
        raise UserError(
            f'{where}, but places {len(axes)} dimensions; give each at most one entry, or make the '
            'expression narrower.'
        )
    entries = [tuple(entry.split('+')) if entry else () for entry in axes]
    for size, names in zip(shape, entries, strict=False):
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            raise UserError(
                f'{where}, but {size} does not divide by {"+".join(names)} = {ways}; split another '
                'dimension, or make the expression narrower.'
            )
    return PartitionSpec(*(names or None for names in entries))
