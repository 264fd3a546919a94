"""One run, written down: the config sections, and the objects they describe put together."""

import dataclasses
import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from mim_jax import config as configs
from mim_jax import sharding
from mim_jax.averages import Average
from mim_jax.checkpoints import CheckpointConfig
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.data import DataConfig, Field, batch_spec
from mim_jax.data.augment import augment_views
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS
from mim_jax.inputs import Inputs
from mim_jax.logs import LogConfig
from mim_jax.models.vit import ViT
from mim_jax.objectives import OBJECTIVES
from mim_jax.objectives.base import Objective
from mim_jax.optimizers import OptimizerConfig, make_optimizer, make_schedule
from mim_jax.sharding import MeshConfig
from mim_jax.train_step import TrainStep


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Config section `train`.

    The length of the run is one of `total_steps`, `total_epochs`, `total_examples`. A step's batch
    is computed in `accumulation` microbatches. `ema` is the average of the parameters.
    """

    total_steps: int | None = None
    total_epochs: float | None = None
    total_examples: int | None = None
    accumulation: int = 1
    ema: Average = Average()

    def __post_init__(self):
        if self.accumulation < 1:
            raise ValueError(f'accumulation = {self.accumulation} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class _EvalConfig:
    """Config section `eval`: which evaluators run, at step 0 and the end and every so often.

    `use_ema` evaluates the average of the parameters instead of the parameters. Every entry of
    EVALUATORS has a section of its own name beside these fields.
    """

    evaluators: tuple[str, ...] = ('knn',)
    every_steps: int | None = None
    every_epochs: float | None = None
    every_examples: int | None = None
    every_percent: float | None = None
    batch_size: int | None = None
    use_ema: bool = False

    def __post_init__(self):
        for name in self.evaluators:
            if name not in EVALUATORS:
                raise ValueError(
                    f'evaluators: {name!r} is none of {", ".join(sorted(EVALUATORS))}.'
                )


EvalConfig = dataclasses.make_dataclass(
    'EvalConfig',
    [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in EVALUATORS.items()],
    bases=(_EvalConfig,),
    frozen=True,
    namespace={'__doc__': _EvalConfig.__doc__},
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All sections of a config."""

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: Any = choice(OBJECTIVES, 'dtm')
    model: ViT = dataclasses.field(default_factory=ViT)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


def default_config(objective: str) -> ConfigDict:
    """A config with every field of every section at its default, for one of OBJECTIVES."""
    config = configs.written(Experiment(objective=OBJECTIVES[objective]()))
    return config.lock()  # a misspelt field in a config file is an error


def from_config(config: ConfigDict) -> Experiment:
    """The sections as dataclasses. Raises UserError for an unknown key or a wrong value."""
    section = {key: config[key] for key in config}
    known = {field.name for field in dataclasses.fields(Experiment)}
    for key in section:
        if key not in known:
            raise UserError(configs.unknown(key, key, known, 'section'))
    return configs.build(Experiment, section, path='')


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
    if objective.needs_ema and experiment.train.ema.decay is None:
        raise UserError(
            'config.train.ema.decay is none, but the objective learns from an EMA network; '
            'set a decay, for example 0.996.'
        )
    return objective


def make_clock(experiment: Experiment, epoch_examples: int | None) -> Clock:
    """The run's clock; raises UserError unless its length is given."""
    clock = Clock(experiment.data.batch_size, epoch_examples)
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
    schedule = make_schedule(experiment.optimizer, clock)
    images = batch_struct(experiment, objective)['images']
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    optimizer = make_optimizer(
        experiment.optimizer,
        schedule,
        decayed=objective.weight_decayed(params),
        layers=objective.layers(params),
        num_layers=experiment.model.depth + 1,
    )
    train.ema.of(params)  # says what is wrong with the parts that are averaged
    return TrainStep(
        objective=objective,
        augment=functools.partial(augment_views, views=objective.views(data)),
        optimizer=optimizer,
        schedule=schedule,
        seed=experiment.seed,
        accumulation=train.accumulation,
        average=train.ema,
        ema_decay=train.ema.decays(clock),
        mesh=mesh,
    )


def batch_struct(experiment: Experiment, objective: Objective) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one global batch as read; see `data.batch_spec`."""
    data = experiment.data
    spec = batch_spec(data, objective.views(data), objective.inputs.fields)
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in spec.items()}
