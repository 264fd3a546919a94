"""How a run fares beyond its loss: a checkup of some images, once per line of the log."""

import functools
import math
from typing import Any

import jax
import numpy as np

from mim_jax import norms, sharding
from mim_jax.evaluators.health import effective_rank
from mim_jax.program import Program
from mim_jax.train_step import Batch, TrainState

IMAGES = 256  # of a batch that are looked at, at most


def checkup(program: Program, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """What `figures` needs: the `features` float32 [n,D] of n images of a batch as read, means of
    their patch tokens, and the scalars of the objective's `health`.
    """
    batch, key = program.step.drawn(state, batch)
    batch = _some(program, batch)
    batch = program.step.augment(batch['keys'], batch)
    tokens = program.objective.features(state.variables, batch['images']).tokens
    found = program.objective.health(state.variables, batch, key, state.step)
    return {'features': tokens.astype('float32').mean(axis=1), **found}


def compiled_checkup(program: Program) -> Any:
    """`checkup` of (state, batch), compiled; every process gets all of what it returns."""
    function = sharding.on_mesh(functools.partial(checkup, program), program.mesh)
    whole = jax.jit(function, out_shardings=sharding.replicated(program.mesh))
    return whole.trace(program.abstract_state, program.abstract_batch).lower().compile()


def line(program: Program, blocks: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """What a line of the log says, as 'health/NAME': of a step's norms by block (see `TrainStep`)
    and of a checkup; each may be {}.
    """
    trained = program.step.trained(program.abstract_state.variables['params'])
    values = figures(jax.device_get(found)) if found else {}
    for kind, of_blocks in jax.device_get(blocks).items():
        for name, value in zip(norms.names(trained), of_blocks, strict=True):
            values[f'health/{kind}/{name}'] = float(value)
    return values


def figures(found: dict[str, np.ndarray]) -> dict[str, float]:
    """What a line of the log says of a `checkup`, as 'health/NAME'.

    effective_rank: RankMe of the features, 1 to the number of images or of dimensions.
    feature_std: mean over dimensions of the deviation between images of features of norm 1, times
      the root of how many dimensions there are: about 1 where they point anywhere, 0 where they are
      all the same.
    """
    features = np.asarray(found['features'], np.float64)
    rank = spread = math.nan
    if np.isfinite(features).all():
        # From the Gram matrix of the smaller side, in float64: milliseconds.
        gram = min(features @ features.T, features.T @ features, key=len)
        rank = effective_rank(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)))
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        unit = features / np.maximum(lengths, np.finfo(np.float64).tiny)
        spread = float(unit.std(axis=0).mean() * math.sqrt(unit.shape[1]))
    others = {name: float(value) for name, value in found.items() if name != 'features'}
    values = {'effective_rank': rank, 'feature_std': spread, **others}
    return {f'health/{name}': value for name, value in values.items()}


def rows_per_device(*, ways: int, parts: int) -> int:
    """How many of a batch's images each of `ways` devices looks at (unless it has fewer): IMAGES in
    all, or less so that together they divide into `parts`.
    """
    least = math.lcm(ways, parts) // ways
    return max(least, IMAGES // ways // least * least)


def _some(program: Program, batch: Batch) -> Batch:
    ways = program.mesh.shape['data'] * program.mesh.shape['fsdp']
    count = rows_per_device(ways=ways, parts=program.objective.batch_parts)

    def some(x: jax.Array) -> jax.Array:
        rows = x.reshape(ways, -1, *x.shape[1:])[:, :count]  # each device's own: nothing moves
        return rows.reshape(-1, *x.shape[1:])

    return jax.tree.map(some, batch)
