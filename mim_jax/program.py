"""The program of a run: mesh, objective and step put together, and every array's place."""

import dataclasses
import functools
import os
from typing import Any

import jax
from flax import traverse_util

from mim_jax import assembly, distributed, experiment, flops, placement, sharding, warm_start
from mim_jax.checkpoints import FROZEN
from mim_jax.clock import Clock
from mim_jax.data import Field, Views
from mim_jax.objectives.base import Objective
from mim_jax.train_step import TrainState, TrainStep

# Products by the GPU's library, which adds biases as it multiplies, and never by Triton: 1 % faster
# on an H200, and sooner compiled (docs/performance.md). What XLA_FLAGS names goes before.
GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's step on a mesh. Building one computes nothing and reads no data."""

    run: experiment.Experiment
    mesh: jax.sharding.Mesh
    clock: Clock
    objective: Objective
    step: TrainStep

    @classmethod
    def make(
        cls,
        run: experiment.Experiment,
        *,
        epoch_examples: int | None,
        fields: tuple[Field, ...],
        devices: list | None = None,
    ) -> 'Program':
        """Checks the config against itself, the fields of its data source and the devices (all of
        them by default); settles how many data workers there are, together with the other
        processes.
        """
        if run.data.workers == -1:
            workers = max(1, distributed.own_cores() - 1)
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, workers=workers))
        mesh = sharding.make_mesh(run.mesh, devices)
        clock = assembly.make_clock(run, epoch_examples)
        objective = assembly.make_objective(run, fields=fields, clock=clock)
        step = assembly.make_train_step(run, objective, clock, mesh)
        return cls(run, mesh, clock, objective, step)

    @property
    def views(self) -> Views:
        """What the objective sees of an item, by name."""
        return self.objective.views(self.run.data)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state. Raises UserError where `mesh.rules` do not fit
        it.
        """
        init = sharding.on_mesh(self.step.init, self.mesh)
        abstract = jax.eval_shape(init, self.abstract_batch['images'])
        shardings = placement.state_shardings(abstract, self.mesh, self.run.mesh)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )

    @functools.cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a global batch as read."""
        batch = assembly.batch_struct(self.run, self.objective)
        place = sharding.batch_sharding(self.mesh)
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for k, v in batch.items()}

    def trace(self) -> Any:
        """The jitted step, traced; `.lower().compile()` is (state, batch) -> (state, metrics)."""
        place = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        gpu = self.mesh.devices.flat[0].platform == 'gpu'
        asked = os.environ.get('XLA_FLAGS', '')
        options = {k: v for k, v in GPU_OPTIONS.items() if gpu and k not in asked}
        step = jax.jit(
            sharding.on_mesh(self.step, self.mesh),
            donate_argnums=0,
            out_shardings=(place, sharding.replicated(self.mesh)),
            compiler_options=options or None,
        )
        return step.trace(self.abstract_state, self.abstract_batch)

    def model_flops(self, traced: Any) -> int:
        """FLOPs of a step's matrix products without what rematerialisation or a kernel repeats."""
        run = everywhere(self.run, remat='none', attention_kernel='xla', kernel='xla')
        if run == self.run:
            return flops.matmul_flops(traced.jaxpr)
        fields = self.objective.inputs.fields
        objective = assembly.make_objective(run, fields=fields, clock=self.clock)
        step = dataclasses.replace(self.step, objective=objective)
        step = sharding.on_mesh(step, self.mesh)
        return flops.matmul_flops(jax.make_jaxpr(step)(self.abstract_state, self.abstract_batch))

    def init(self, pretrained: dict[str, Any], started: dict[str, Any] | None = None) -> TrainState:
        """The state before the first step, born with its shardings; see `pretrained`.

        started: parameters (host arrays) that replace fresh ones, see `TrainStep.init`.
        """
        images = self.abstract_batch['images']

        def trained(started: dict[str, Any]) -> TrainState:
            # The frozen collections come from files: their fresh values are never computed.
            return _without_frozen(self.step.init(images, started))

        place = jax.tree.map(lambda x: x.sharding, _without_frozen(self.abstract_state))
        flat_place = traverse_util.flatten_dict(place.variables['params'])
        flat = traverse_util.flatten_dict(started or {})
        flat = sharding.put_tree(flat, {name: flat_place[name] for name in flat})
        trained = sharding.on_mesh(trained, self.mesh)
        state = jax.jit(trained, out_shardings=place)(traverse_util.unflatten_dict(flat))
        return state.replace(variables={**state.variables, **pretrained})

    def start(self) -> warm_start.Start | None:
        """What the config section `init` takes from a file or another run, None where it is empty.

        Raises UserError where that does not fit.
        """
        return warm_start.load(
            self.run.init,
            model=self.run.model,
            params=self.abstract_state.variables['params'],
            inputs=self.objective.inputs,
        )

    def pretrained(self) -> dict[str, Any]:
        """The collections that the objective reads from files, on the mesh.

        The FROZEN ones are no part of checkpoints and are read at every start; others only replace
        what a fresh run would draw at random.
        """
        return self.placed(self.objective.pretrained())

    def placed(self, read: dict[str, Any]) -> dict[str, Any]:
        """Collections of host arrays on the mesh."""
        place = {
            name: jax.tree.map(lambda x: x.sharding, value)
            for name, value in self.abstract_state.variables.items()
        }
        return {name: sharding.put_tree(value, place[name]) for name, value in read.items()}

    def restorable(self) -> TrainState:
        """The abstract state that a checkpoint holds."""
        return _without_frozen(self.abstract_state)


def _without_frozen(state: TrainState) -> TrainState:
    kept = {name: value for name, value in state.variables.items() if name not in FROZEN}
    return state.replace(variables=kept)


def everywhere(section: Any, **values: Any) -> Any:
    """A config section, or all of them, with these values of fields of these names at any depth."""
    changed = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name in values:
            changed[field.name] = values[field.name]
        elif dataclasses.is_dataclass(value):
            changed[field.name] = everywhere(value, **values)
    return dataclasses.replace(section, **changed)
