"""`--dry_run`: the whole program built abstractly, and what it would take, without reading data."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.experiment import Experiment
from mim_jax.program import Program
from mim_jax.sharding import path_name

# Stands in for what only the data knows, as do the fields that its config section assumes; the
# compiled step does not depend on it beyond constants.
ASSUMED_EPOCH = 1_281_167


def dry_run(run: Experiment, *, topology: str | None, say: Callable[[str], None] = print) -> None:
    """Prints parameters with shapes and shardings, and the compiled step's FLOPs and memory.

    Args:
        topology: compile for a TPU slice that need not be there, as 'v5e:4x4' (needs the package
            libtpu); None compiles for the devices at hand.
    """
    devices = topology_devices(topology) if topology else None
    program = Program.make(
        run,
        epoch_examples=ASSUMED_EPOCH,
        fields=run.data.source.assumed_fields(),
        devices=devices,
    )
    kind = program.mesh.devices.flat[0].device_kind
    shape = ', '.join(f'{axis} {size}' for axis, size in program.mesh.shape.items())
    say(f'mesh: {shape} of {program.mesh.size} x {kind}')
    for name, array in program.abstract_batch.items():
        say(f'batch: {name} {describe(array)}')
    for collection, tree in program.abstract_state.variables.items():
        say(table(collection, tree))
    optimizer = jax.tree.leaves(program.abstract_state.opt_state)
    say(f'optimizer state: {size_of(optimizer)}')
    traced = program.trace()
    model_flops = program.model_flops(traced)
    per_image = model_flops / run.data.batch_size
    say(f'model FLOPs: {model_flops:.4g} per step, {per_image:.4g} per image')
    say('compiling ...')
    memory = traced.lower().compile().memory_analysis()
    if memory is None:
        say('memory: not reported by this backend')
        return
    # Arguments and results of the donated state share their memory.
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    say(
        f'memory per device: {gib(peak)} (arguments {gib(memory.argument_size_in_bytes)}, '
        f'temporary {gib(memory.temp_size_in_bytes)})'
    )


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology such as 'v5e:4x4', for ahead-of-time compilation."""
    from jax.experimental import topologies

    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception as error:  # libtpu raises whatever it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'--topology={name}: cannot be described ({reason}); install the package libtpu and '
            'name a topology such as v5e:4x4.'
        ) from error


def table(title: str, tree: Any) -> str:
    """The arrays of a tree, a line each: path, shape, dtype, sharding; and their total."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    width = max(len(path_name(path)) for path, _ in leaves)
    lines = [f'  {path_name(path):{width}}  {describe(leaf)}' for path, leaf in leaves]
    return '\n'.join([f'{title}: {size_of([leaf for _, leaf in leaves])}', *lines])


def describe(leaf: jax.ShapeDtypeStruct) -> str:
    return f'{leaf.dtype}{list(leaf.shape)} {tuple(leaf.sharding.spec)}'


def size_of(leaves: list[Any]) -> str:
    numbers = sum(math.prod(leaf.shape) for leaf in leaves)
    size = sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)
    return f'{numbers:,} numbers, {gib(size)}'


def gib(size: float) -> str:
    return f'{size / 2**30:.3f} GiB'
