"""The device mesh, and batches on it.

A mesh has the axes `data`, `fsdp` and `tensor`. Batches are split over `data` and `fsdp`; where
parameters and optimiser state live: `mim_jax.placement`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import UserError
from mim_jax.ranges import Axis, Number

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(('data', 'fsdp'))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Config section `mesh`: devices along each axis; one of them may be -1, "all that remain".

    `min_shard_size` is the number of elements from which an array is split over `fsdp`; smaller
    ones are replicated.

    `rules` go before that, for the arrays that they name: pairs of an expression (`re.search`)
    for the path of a parameter, which its moments, average and teacher have at their end, too, and
    of an entry for each dimension, from the first: none, an axis, or several ('fsdp+tensor'). The
    first rule that is for an array places it. Without entries, (), an array is replicated.
    """

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1
    min_shard_size: Number = 2**16
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if 0 in sizes or sizes.count(-1) > 1:
            raise ValueError(
                f'axes data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} must be positive, '
                'and one of them may be -1.'
            )
        for expression, entries in self.rules:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f'rules: {expression!r} is no expression ({error}).') from None
            axes = [axis for entry in entries if entry is not None for axis in entry.split('+')]
            if not set(axes) <= set(AXES) or len(set(axes)) < len(axes):
                raise ValueError(
                    f'rules: {expression!r} has {entries}, must be none or axes of '
                    f'{", ".join(AXES)}, each at most once.'
                )


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """The mesh over `devices` (all devices of all hosts by default).

    Raises UserError when the axes do not fit the number of devices. One process may use fewer
    devices than it has; several processes must use all.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    wanted = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes, strict=True))
    if fixed > len(devices):
        raise UserError(
            f'config.mesh: {wanted} needs {fixed} devices, but there are {len(devices)}; '
            'set smaller axes or -1 for one of them.'
        )
    if -1 in sizes:
        if len(devices) % fixed:
            raise UserError(
                f'config.mesh: {wanted} does not divide the {len(devices)} devices evenly.'
            )
        sizes[sizes.index(-1)] = len(devices) // fixed
    elif fixed != len(devices):
        if jax.process_count() > 1:
            raise UserError(
                f'config.mesh: {wanted} uses {fixed} of {len(devices)} devices, but several '
                'processes must use all; set one axis to -1.'
            )
        devices = devices[:fixed]
    slices = {getattr(device, 'slice_index', 0) for device in devices}
    fits = sizes[0] % len(slices) == 0
    # JAX calls hosts of GPUs slices, too: between these any axis may cross.
    if not fits and devices[0].platform == 'tpu':
        raise UserError(
            f'config.mesh: data={sizes[0]} is not divisible by the {len(slices)} slices of TPUs, '
            f'and only data crosses from one to another; make it a multiple of {len(slices)}.'
        )
    try:
        if len(slices) > 1 and fits:
            # Only the data axis crosses the slow network between slices.
            inner = (sizes[0] // len(slices), *sizes[1:])
            grid = mesh_utils.create_hybrid_device_mesh(
                inner, (len(slices), 1, 1), devices=devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'config.mesh: {wanted} uses {len(devices)} of the devices, and these are no block of '
            'the TPU slice, or not as many of every slice; set one axis to -1 to use all.'
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(
    batch_size: int, mesh: Mesh, *, accumulation: int = 1, field: str = 'data.batch_size'
) -> None:
    """Raises UserError unless the global batch divides over the mesh (and over accumulated
    microbatches).
    """
    ways = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % (ways * accumulation):
        detail = f'mesh data {mesh.shape["data"]} x fsdp {mesh.shape["fsdp"]}'
        if accumulation > 1:
            detail += f' x train.accumulation {accumulation}'
        nearest = max(1, round(batch_size / (ways * accumulation))) * ways * accumulation
        raise UserError(
            f'config.{field} = {batch_size} is not divisible by {detail}; '
            f'use for example {nearest}.'
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """`function`, to be jitted, with a mesh that `over_batch` knows of."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **named)

    return called


def over_batch(x: jax.Array) -> jax.Array:
    """x [B, ...] split over the batch axes of the mesh (see `on_mesh`), as it is without one.

    Left to itself the compiler lets a layer's results follow its parameters: split over `fsdp`, and
    summed or gathered after every product, where it is the parameters, being smaller, that should
    travel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % (mesh.shape['data'] * mesh.shape['fsdp']):
        return x  # no mesh, or no batch of a run: shapes of an initialisation
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*BATCH, *rest))


def device_kind() -> str:
    """What a program is traced for: devices of the mesh (see `on_mesh`), or else those at hand."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def for_hopper() -> bool:
    """Whether a program is traced for NVIDIA's Hopper GPUs (H100, H200, GH200): by the mesh (see
    `on_mesh`), without which this is not known, and False.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and re.match(r'NVIDIA G?H\d', device.device_kind) is not None


def platform() -> str:
    """Of what a program is traced for, as `device_kind`: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def per_device(function: Callable, *specs: PartitionSpec) -> Callable:
    """`function` of arrays, one for each of `specs`, called by every device of the mesh (see
    `on_mesh`) with its own parts of them: for kernels, which the compiler cannot split.

    An axis that does not divide among its devices is whole on each of them. The result is split as
    the first array is. Without a mesh it is `function`.
    """

    @functools.wraps(function)
    def called(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)

        def fitting(spec: PartitionSpec, array: jax.Array) -> PartitionSpec:
            entries = []
            for size, entry in zip(array.shape, spec, strict=False):
                axes = (entry,) if isinstance(entry, str) else entry or ()
                whole = size % math.prod(mesh.shape[axis] for axis in axes)
                entries.append(None if whole else entry)
            return PartitionSpec(*entries)

        fitted = tuple(map(fitting, specs, arrays))
        run = jax.shard_map(function, in_specs=fitted, out_specs=fitted[0], check_vma=False)
        return run(*arrays)

    return called


def on_one_cpu() -> bool:
    """Whether what is traced is for a single CPU: the mesh's (see `on_mesh`) or else the default.

    A mesh of several CPU devices stands for a pod, and computes what it would.
    """
    return jax.sharding.get_abstract_mesh().size <= 1 and platform() == 'cpu'


def tensor_parallel() -> bool:
    """Whether heads and hidden units are split over devices of the mesh (see `on_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape['tensor'] > 1


def path_name(path: tuple) -> str:
    """A tree path as "a/b/c", for rules and for error messages."""
    return '/'.join(
        str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part))))
        for part in path
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch (arrays [B / processes, ...]) as global device arrays, split
    over data and fsdp.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def put_tree(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every process, as global device arrays with the given shardings."""

    def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)
