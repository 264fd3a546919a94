"""From the sections of a config to the objects of a run: inputs, objective, clock, step."""

import dataclasses
import functools

import jax

from mim_jax import sharding
from mim_jax.clock import Clock
from mim_jax.data import Field, batch_spec
from mim_jax.data.augment import augment_views
from mim_jax.errors import UserError
from mim_jax.experiment import Experiment
from mim_jax.inputs import Inputs
from mim_jax.objectives.base import Objective
from mim_jax.optimizers import make_decay_schedule, make_optimizer, make_schedule, trained
from mim_jax.parameter_rules import constant_rates
from mim_jax.train_step import TrainStep


def make_inputs(experiment: Experiment, *, fields: tuple[Field, ...]) -> Inputs:
    """What the parts of the method are told of the data, whose source has these fields."""
    data = experiment.data
    return Inputs(tuple(data.image_size), data.channels, data.mean, data.std, fields)


def make_objective(
    experiment: Experiment, *, fields: tuple[Field, ...], clock: Clock | None = None
) -> Objective:
    """The objective, bound to the encoder and the inputs of the config and to the run's clock.

    Raises UserError where they do not fit each other, or the views that it wants the fields.
    """
    inputs = make_inputs(experiment, fields=fields)
    objective = experiment.objective.bind(experiment.model, inputs, clock)
    objective.grid  # noqa: B018  an image that does not divide into patches is reported here
    batch_struct(experiment, objective)
    if objective.averaged and experiment.train.ema.decay is None:
        raise UserError(
            'config.train.ema.decay is none, but the objective learns from an EMA network; '
            'set a decay, for example 0.996.'
        )
    return objective


def make_clock(experiment: Experiment, epoch_examples: int | None) -> Clock:
    """The run's clock; raises UserError unless its length is given."""
    whole = experiment.train.whole_batches
    clock = Clock(experiment.data.batch_size, epoch_examples, whole_batches=whole)
    total = clock.steps(experiment.train, 'total', path='train')
    if not total:
        raise UserError(
            'config.train: the length of the run is missing; set total_steps, total_epochs or '
            'total_examples above 0.'
        )
    return dataclasses.replace(clock, total_steps=total)


def make_train_step(
    experiment: Experiment, objective: Objective, clock: Clock, mesh: jax.sharding.Mesh
) -> TrainStep:
    """The update of the run."""
    data, train = experiment.data, experiment.train
    sharding.check_batch(data.batch_size, mesh, accumulation=train.accumulation)
    if train.accumulation > 1 and objective.needs_whole_batch:
        raise UserError(
            f'config.train.accumulation = {train.accumulation}, but this objective needs its batch '
            'in one piece; set it to 1, and use more devices or model.remat to save memory.'
        )
    at_once = data.batch_size // train.accumulation
    if at_once % objective.batch_parts:
        raise UserError(
            f'config.data.batch_size / config.train.accumulation = {at_once} images are computed '
            f'at once, which do not divide into {objective.batch_parts} equal parts, as '
            'config.objective needs them (morphing.num_shares; 2 where images are mixed in pairs).'
        )
    schedule = make_schedule(experiment.optimizer, clock)
    images = batch_struct(experiment, objective)['images']
    init = sharding.on_mesh(objective.init, mesh)
    params = jax.eval_shape(init, jax.random.key(0), images)['params']
    only_trained = functools.partial(trained, frozen=experiment.optimizer.frozen)
    optimizer = make_optimizer(
        experiment.optimizer,
        schedule,
        decay=make_decay_schedule(experiment.optimizer, clock),
        decayed=only_trained(
            objective.weight_decayed(params, also=experiment.optimizer.decay_also)
        ),
        layers=only_trained(objective.layers(params)),
        num_layers=experiment.model.depth + 1,
        constant=constant_rates(only_trained(params), rules=experiment.optimizer.constant_rates),
    )
    missing = [part for part in objective.averaged if part not in train.ema.of(params)]
    if missing:
        raise UserError(
            f'config.train.ema.parts leaves out {", ".join(missing)}, but the objective learns '
            f'from the average of {", ".join(objective.averaged)}; name these, or none: ().'
        )
    return TrainStep(
        objective=objective,
        augment=functools.partial(augment_views, views=objective.views(data)),
        optimizer=optimizer,
        frozen=experiment.optimizer.frozen,
        schedule=schedule,
        seed=experiment.seed,
        accumulation=train.accumulation,
        average=train.ema,
        average_decay=train.ema.decays(clock),
        mesh=mesh,
        skip_nonfinite=train.skip_nonfinite,
        health=experiment.log.health,
    )


def batch_struct(experiment: Experiment, objective: Objective) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one global batch as read; see `data.batch_spec`."""
    data = experiment.data
    spec = batch_spec(data, objective.views(data), objective.inputs.fields)
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in spec.items()}
