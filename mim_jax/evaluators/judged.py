"""What a judge is given: an objective, its variables, and the evaluation images it is judged on."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mim_jax import data as data_room
from mim_jax import sharding
from mim_jax.evaluators.features import gather


@dataclasses.dataclass(frozen=True)
class Judged:
    """An objective under evaluation.

    objective: bound to encoder, inputs and clock. variables: its collections on the mesh; `params`
      is the average of the parameters where `eval.use_ema` says so.
    mesh: batches are split over its axes `data` and `fsdp`.
    data: the config section. views: the objective's, as evaluators see them
      (`data.eval_views`): all the same at every call.
    source: the evaluation split's images, as many as the judge's `max_test` says; None for a judge
      that does not use it.
    batch_size: of `batches`, over all processes.
    num_classes: of the training split; None without labels.
    compiled: where `jit` keeps its functions.
    check: called before every batch; what it raises ends the evaluation.
    """

    objective: Any
    variables: Mapping[str, Any]
    mesh: jax.sharding.Mesh
    data: data_room.DataConfig
    views: data_room.Views
    source: data_room.Source | None
    batch_size: int
    num_classes: int | None
    compiled: dict[str, Callable]
    check: Callable[[], None] = lambda: None

    def batches(self, views: data_room.Views | None = None) -> Iterator[dict[str, np.ndarray]]:
        """This process's batches of `views` (default: `self.views`): every image once over all
        processes, with `index` int32 and `valid` bool [b], which is False for padding and images
        that cannot be read. Equally many on every process.
        """
        batches = data_room.eval_batches(
            self.source,
            self.data,
            views=self.views if views is None else views,
            batch_size=self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        for batch in batches:
            self.check()
            yield batch

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A process's share of a batch as global arrays, split over the mesh by their rows."""
        return sharding.put_batch(dict(batch), self.mesh)

    def replicate(self, tree: Any) -> Any:
        """A tree of host arrays, the same on every process, on all devices of the mesh."""
        place = sharding.replicated(self.mesh)
        return sharding.put_tree(tree, jax.tree.map(lambda _: place, tree))

    def jit(self, name: str, function: Callable) -> Callable:
        """`function` jitted with replicated results, once for all evaluations of a run, by name."""
        if name not in self.compiled:
            place = sharding.replicated(self.mesh)
            function = sharding.on_mesh(function, self.mesh)
            self.compiled[name] = jax.jit(function, out_shardings=place)
        return self.compiled[name]

    def summed(
        self,
        step: Callable,
        sums: Mapping[str, np.ndarray],
        batches: Iterable[Mapping[str, np.ndarray]],
        *given: Any,
    ) -> dict[str, np.ndarray]:
        """Host sums after all batches (this process's rows of arrays) of a jitted `step`: (sums,
        variables, *given, **batch) -> sums. It sees global batches, so that every process has the
        sums over all images.
        """
        sums = self.replicate(sums)
        for batch in batches:
            before, sums = sums, step(sums, self.variables, *given, **self.put(batch))
            # One batch stays in flight, so that the host prepares the next while the device works.
            jax.block_until_ready(before)
        return jax.device_get(sums)

    def total(self, sums: Any) -> Any:
        """A tree of host numbers or arrays, each summed over all processes. A collective."""
        return jax.tree.map(lambda x: gather(np.asarray(x)[None]).sum(axis=0), sums)
