"""One run, written down: the sections of its config."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mim_jax import config as configs
from mim_jax import suggestions
from mim_jax.averages import Average
from mim_jax.config import choice
from mim_jax.data import DataConfig
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS
from mim_jax.logs import LogConfig
from mim_jax.models.vit import ViT
from mim_jax.objectives import OBJECTIVES
from mim_jax.optimizers import OptimizerConfig
from mim_jax.preservation import CheckpointConfig
from mim_jax.ranges import Batch, Examples, NotNegative, Number, Percent, Seed
from mim_jax.sharding import MeshConfig
from mim_jax.warm_start import InitConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Config section `train`.

    The length of the run is one of `total_steps`, `total_epochs`, `total_examples`. A step's batch
    is computed in `accumulation` microbatches. `ema` is the average of the parameters.

    whole_batches: every duration in epochs, of any section, counts an epoch as its whole batches
      (625 of 2,048 for ImageNet-1K), as code does that drops the last, partial one. Which images a
      batch holds does not change: an epoch's last ones share a batch with the next one's first.
    skip_nonfinite: so many steps of the run whose loss or gradient is not finite are left out; one
      more stops it. Either way such a step changes no parameter.
    """

    total_steps: Number | None = None
    total_epochs: NotNegative | None = None
    total_examples: Examples | None = None
    accumulation: Batch = 1
    whole_batches: bool = False
    skip_nonfinite: Number = 0
    ema: Average = Average()


@dataclasses.dataclass(frozen=True)
class _EvalConfig:
    """Config section `eval`: which evaluators run, at step 0 and the end and every so often.

    `use_ema` evaluates the average of the parameters instead of the parameters. Every entry of
    EVALUATORS has a section of its own name beside these fields.
    """

    evaluators: tuple[str, ...] = ('knn',)
    every_steps: Number | None = None
    every_epochs: NotNegative | None = None
    every_examples: Examples | None = None
    every_percent: Percent | None = None
    batch_size: Batch | None = None
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

    seed: Seed = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: Any = choice(OBJECTIVES, 'dtm')
    model: ViT = dataclasses.field(default_factory=ViT)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
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
            raise UserError(suggestions.unknown(key, key, known, 'section'))
    return configs.build(Experiment, section, path='')
