"""The training state and the jitted update: views, loss, gradients, accumulation, clipping, the
optimiser, EMA.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mim_jax import averages, keys, norms, sharding
from mim_jax.averages import Average
from mim_jax.losses import Weighted
from mim_jax.nonfinite import MUST_BE_FINITE
from mim_jax.optimizers import Schedule, trained

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    `variables` holds the collections of the objective: `params` (trained, float32), `teacher`
    (frozen, loaded from a file and not saved in checkpoints), `ema` (an average of `params`),
    `state` (whatever else a method carries along). `refused` counts the steps whose loss or
    gradient was not finite: they changed nothing.
    """

    step: jax.Array
    variables: dict[str, Any]
    opt_state: Any
    refused: jax.Array


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The update of one run.

    Attributes:
        objective: see `mim_jax.objectives.base.Objective`.
        augment: function (keys [B], batch as read) -> batch with float32 views in [0, 1]: the
            device half of the data, see `mim_jax.data.augment.augment_views`.
        optimizer: optax transformation over the parts of `params` that are trained.
        frozen: the parts of `params` that are not; they get no gradient and no optimiser state.
        schedule: learning rate by step, for the log.
        seed: all randomness is a function of (seed, step, name).
        accumulation: microbatches per step; the update equals the full batch's.
        average: which parameters have an average `ema`.
        average_decay: function step -> decay of that average, or None.
        mesh: the device mesh the batch is split over.
        skip_nonfinite: so many steps may be refused. One more, and the state stands still, as it
            was before that step, whatever follows.
        health: the metrics have the `norms.norms` of the gradient, and of updates in proportion to
            the parameters, block by block, too.
    """

    objective: Any
    augment: Callable[[jax.Array, Batch], Batch]
    optimizer: optax.GradientTransformation
    schedule: Schedule
    seed: int
    accumulation: int
    average: Average
    average_decay: Schedule | None
    mesh: jax.sharding.Mesh
    frozen: tuple[str, ...] = ()
    skip_nonfinite: int = 0
    health: bool = False

    def init(
        self, images: jax.ShapeDtypeStruct | jax.Array, started: dict[str, Any] | None = None
    ) -> TrainState:
        """The state before the first step; `images` [B, H, W, C] gives the shapes. Traceable.

        started: parameters that replace fresh ones, nested as they are; any may be left out.
        """
        variables = self.objective.init(keys.named(jax.random.key(self.seed), 'init'), images)
        if started:
            flat = traverse_util.flatten_dict(variables['params'])
            flat |= traverse_util.flatten_dict(started)
            variables['params'] = traverse_util.unflatten_dict(flat)
        if self.average_decay is not None:
            variables['ema'] = jax.tree.map(jnp.array, self.average.of(variables['params']))
        opt_state = self.optimizer.init(self.trained(variables['params']))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, variables, opt_state, refused=zero)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update. `batch` is as read from disk: the arrays of `mim_jax.data.batch_spec`, such
        as images uint8 [B, H, W, C] and labels int32 [B]. Metrics are float32 scalars, but for
        `blocks` (see `health`).
        """
        grads, metrics, extra = self.gradients(state, batch)
        before = self.trained(state.variables['params'])
        updates, opt_state = self.optimizer.update(grads, state.opt_state, before)
        params = state.variables['params'] | optax.apply_updates(before, updates)
        variables = {**state.variables, 'params': params}
        if extra:
            variables['state'] = extra
        if self.average_decay is not None:
            decay = self.average_decay(state.step)
            variables['ema'] = averages.moved(variables['ema'], params, decay)
        metrics |= {
            'learning_rate': jnp.asarray(self.schedule(state.step), jnp.float32),
            'grad_norm': optax.tree.norm(grads),
            'param_norm': optax.tree.norm(params),
        }
        if self.health:
            metrics['blocks'] = {
                'grad_norm': norms.norms(grads),
                'update_ratio': norms.ratios(updates, before),
            }
        return self._unless_refused(state, variables, opt_state, metrics), metrics

    def gradients(self, state: TrainState, batch: Batch) -> tuple[Any, dict[str, jax.Array], Any]:
        """Gradients of the trained parameters, metrics (`loss` and the objective's), and the new
        `state` collection.
        """
        batch, key = self.drawn(state, batch)
        return self._gradients(state, batch, key)

    def drawn(self, state: TrainState, batch: Batch) -> tuple[Batch, jax.Array]:
        """The batch with its `keys` [B], and the key for draws that all of it shares."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        keyed = {**batch, 'keys': keys.per_example(key, batch['images'].shape[0])}
        return keyed, keys.named(key, 'loss')

    def _unless_refused(
        self, old: TrainState, variables: dict[str, Any], opt_state: Any, metrics: dict
    ) -> TrainState:
        """The state with these new variables, or where they would not be finite with its old ones:
        the step is over then, schedules go on, moments and parameters stay.
        """
        finite = jnp.isfinite(jnp.stack([metrics[name] for name in MUST_BE_FINITE])).all()
        refused = old.refused + jnp.where(finite, 0, 1)
        moves = refused <= self.skip_nonfinite

        def chosen(new: Any, kept: Any) -> Any:
            if isinstance(new, optax.ScaleByScheduleState):
                return jax.tree.map(lambda n, k: jnp.where(moves, n, k), new, kept)
            return kept if new is kept else jnp.where(finite & moves, new, kept)

        new, kept = (variables, opt_state), (old.variables, old.opt_state)
        variables, opt_state = jax.tree.map(
            chosen, new, kept, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
        )
        return TrainState(old.step + jnp.where(moves, 1, 0), variables, opt_state, refused)

    def trained(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parts of the parameters that are trained."""
        return trained(params, frozen=self.frozen)

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, dict, Any]:
        def loss(params: Any, extra: Any, micro: Batch) -> tuple[jax.Array, tuple[dict, Any]]:
            variables = {**state.variables, 'params': state.variables['params'] | params}
            if extra:
                variables['state'] = extra
            with jax.named_scope('augment'):
                micro = self.augment(micro['keys'], micro)
            value, metrics, extra = self.objective.loss(variables, micro, key, state.step)
            weight = None
            if isinstance(value, Weighted):
                # Parts of a batch add up as sums; the whole batch is a mean at once.
                weight = jax.lax.stop_gradient(value.weight)
                value = value.mean if self.accumulation == 1 else value.sum
            return value, ({'loss': value, **metrics}, extra, weight)

        gradient = jax.grad(loss, has_aux=True)
        params = self.trained(state.variables['params'])
        extra = state.variables.get('state', {})
        if self.accumulation == 1:
            grads, (metrics, extra, _) = gradient(params, extra, batch)
            return grads, metrics, extra

        def split(x: jax.Array) -> jax.Array:
            # Row i goes to microbatch i mod A: every microbatch is spread over all devices, nothing
            # moves between them.
            parts = x.reshape(x.shape[0] // self.accumulation, self.accumulation, *x.shape[1:])
            parts = jnp.swapaxes(parts, 0, 1)
            spec = jax.sharding.PartitionSpec(None, *sharding.BATCH)
            return jax.lax.with_sharding_constraint(
                parts, jax.sharding.NamedSharding(self.mesh, spec)
            )

        def body(carry: tuple, micro: Batch) -> tuple[tuple, dict]:
            total, extra = carry
            grads, (metrics, extra, weight) = gradient(params, extra, micro)
            return (jax.tree.map(jnp.add, total, grads), extra), (metrics, weight)

        zeros = jax.tree.map(jnp.zeros_like, params)
        (total, extra), (metrics, weights) = jax.lax.scan(
            body, (zeros, extra), jax.tree.map(split, batch)
        )
        count = self.accumulation
        losses = metrics.pop('loss').sum()
        if weights is not None:
            count = jnp.where(weights.sum() > 0, weights.sum(), 1.0)
        grads = jax.tree.map(lambda g: g / count, total)
        metrics = jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
        return grads, {'loss': losses / count, **metrics}, extra
