"""Multi-block masks as plain loops: sizes by the released rule, the draws of the same keys."""

import math

import jax
import numpy as np

from mim_jax import keys as named_keys

DRAWS = 4096


def block_size(u, scale, aspect, grid):
    """Of I-JEPA's code: sides that reach the grid's are counted down until they do not."""
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    while height >= grid[0]:
        height -= 1
    while width >= grid[1]:
        width -= 1
    return height, width


def step_sizes(step, rule, grid):
    """(height, width) of the targets and of the large block."""
    shared = jax.random.fold_in(jax.random.key(0), step)
    sizes = []
    for name, scale, aspect in (
        ('target', rule.target_scale, rule.target_aspect),
        ('context', rule.context_scale, (1.0, 1.0)),
    ):
        row = int(jax.random.randint(named_keys.named(shared, name), (), 0, DRAWS))
        sizes.append(block_size((row + 0.5) / DRAWS, scale, aspect, grid))
    return sizes


def rectangle(corner, size, grid):
    """Places of a block, row by row."""
    return [
        row * grid[1] + column
        for row in range(corner[0], corner[0] + size[0])
        for column in range(corner[1], corner[1] + size[1])
    ]


def corners(key, shape, size, grid, margin):
    down, across = jax.random.split(key)
    high = [whole - side - margin + 1 for whole, side in zip(grid, size, strict=True)]
    return np.stack(
        [
            jax.random.randint(down, shape, 0, high[0]),
            jax.random.randint(across, shape, 0, high[1]),
        ],
        axis=-1,
    )


def multi_block(keys, step, rule, grid):
    """For every image the places that are seen, and those of each target."""
    target, context = step_sizes(step, rule, grid)
    margin = 1 if rule.edge == 'free' else 0
    found = []
    for key in keys:
        of_targets, of_context, of_rest = jax.random.split(key, 3)
        drawn = corners(of_targets, (rule.num_targets,), target, grid, margin)
        targets = [rectangle(corner, target, grid) for corner in drawn]
        levels = 1 if rule.overlap == 'allowed' else rule.num_targets + 1
        tries = corners(of_context, (levels, 20), context, grid, margin)
        left = []
        for relaxed in range(levels):
            hidden = set().union(*targets[: rule.num_targets - relaxed])
            if rule.overlap == 'allowed':
                hidden = set()
            for corner in tries[relaxed]:
                left = [p for p in rectangle(corner, context, grid) if p not in hidden]
                if len(left) >= rule.num_context:
                    break
            else:
                continue
            break
        if rule.kept == 'random':
            noise = np.asarray(jax.random.uniform(of_rest, (grid[0] * grid[1],)))
            left = sorted(left, key=lambda p: noise[p])  # noqa: B023
        found.append((sorted(left[: rule.num_context]), targets))
    return found


def union_of_blocks(keys, step, name, union, rule, grid):
    """For every image the places that are seen and predicted, and all that no block covers."""
    shared = named_keys.named(jax.random.fold_in(jax.random.key(0), step), name)
    u = (int(jax.random.randint(shared, (), 0, DRAWS)) + 0.5) / DRAWS
    area = int(grid[0] * grid[1] * union.scale)
    ratio = rule.aspect[0] + u * (rule.aspect[1] - rule.aspect[0])
    size = [
        min(round(math.sqrt(side)), whole)
        for side, whole in zip((area * ratio, area / ratio), grid, strict=True)
    ]
    found = []
    for key in keys:
        of_blocks, of_rest = jax.random.split(key)
        covered = set()
        for corner in corners(of_blocks, (union.num_blocks,), size, grid, 0):
            covered |= set(rectangle(corner, size, grid))
        everything = range(grid[0] * grid[1])
        noise = np.arange(len(everything))
        if rule.kept == 'random':
            noise = np.asarray(jax.random.uniform(of_rest, noise.shape))
        outside = sorted(set(everything) - covered, key=lambda p: noise[p])  # noqa: B023
        inside = sorted(covered, key=lambda p: noise[p])  # noqa: B023
        seen = (outside + inside)[: union.num_context]
        predicted = [p for p in inside + outside if p not in seen][: union.num_predicted]
        found.append((sorted(seen), sorted(predicted), outside))
    return found
