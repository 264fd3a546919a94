"""From the config section `optimizer` to an optax transformation: schedule, clipping, the rule,
masks, layer decay.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.parameter_rules import TOKENS_AND_TABLES
from mim_jax.ranges import (
    AtLeastOne,
    Batch,
    Examples,
    Fraction,
    NotNegative,
    Number,
    Percent,
    Positive,
    PositiveShare,
    Range,
)
from mim_jax.sharding import path_name

Schedule = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An update rule with linear warm-up.

    rule: 'adamw', 'sgd' or 'lars'; the last two have `momentum` in place of beta1, beta2 and eps.
      Their weight decay is added to the gradient before the momentum. LARS scales what goes into
      the momentum by `trust` * the parameter's norm / its norm, for those that weight decay applies
      to (MAE's linear probe: util/lars.py of its released code, by number of dimensions); blocks
      one by one.
    frozen: parts of the parameters, by the names in the section `init`, that stay as they are: no
      gradient, no weight decay, no state of the rule.
    learning_rate: the peak is it times the recipe's rule of batch scaling.
    scaling: that rule: 'none', 'linear' (batch / `reference_batch`), 'sqrt' (its square root).
    schedule: after the warm-up; 'cosine' falls to `end_learning_rate` over the rest of the run,
      'multistep' multiplies by `decay_factor` at each of `decay_percent` of the run; 'linear' falls
      to `end_learning_rate` from the first step on, and the warm-up is a factor beside that (mmcv's
      'poly' of power 1).
    horizon: the schedule is laid out for so many times the run's length; above 1 the run ends in
      the midst of it (CroCo: 2, I-JEPA: 1.25). The warm-up is as long as it says.
    warmup_*: how long the rate rises, from `warmup_learning_rate`.
    scale_ends: the rule applies to the first and the last rate as well (SimMIM).
    weight_decay: of kernels; of biases, scales, tokens and position tables there is none.
    end_weight_decay: it moves there along half a cosine, in the run's length times
      `weight_decay_horizon`, None: `horizon` (I-JEPA: 0.04 to 0.4); None: it is constant.
    constant_rates: pairs of an expression (`re.search`) for the path of a parameter and a learning
      rate, which stays as it is, and `weight_decay` with it, whatever the schedules do to the
      others (MOCA: (('_generator/', 1e-4),)); `layer_decay` multiplies it, too. The first that
      fits counts.
    decay_also: which of TOKENS_AND_TABLES are decayed all the same. Code that goes by the number of
      dimensions, as BEiT's does, decays ('mask_token', 'relative_position').
    layer_decay: below 1, a parameter's rate is multiplied by it ** (distance from the top).
    clip_norm: bound of the gradient's global norm.
    """

    rule: Literal['adamw', 'sgd', 'lars'] = 'adamw'
    frozen: tuple[str, ...] = ()
    learning_rate: Annotated[float, Range(0, low_open=True)] = 1.5e-4
    scaling: Literal['none', 'linear', 'sqrt'] = 'linear'
    reference_batch: Batch = 256
    schedule: Literal['cosine', 'multistep', 'linear', 'constant'] = 'cosine'
    warmup_steps: Number | None = None
    warmup_epochs: NotNegative | None = None
    warmup_examples: Examples | None = None
    warmup_percent: Percent | None = None
    warmup_learning_rate: NotNegative = 0.0
    end_learning_rate: NotNegative = 0.0
    scale_ends: bool = False
    decay_percent: tuple[Percent, ...] = ()
    decay_factor: Positive = 0.1
    horizon: AtLeastOne = 1.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: Positive = 1e-8
    momentum: Fraction = 0.9
    trust: Positive = 0.001
    weight_decay: NotNegative = 0.05
    end_weight_decay: NotNegative | None = None
    weight_decay_horizon: AtLeastOne | None = None
    constant_rates: tuple[tuple[str, Positive], ...] = ()
    decay_also: tuple[str, ...] = ()
    layer_decay: PositiveShare | None = None
    clip_norm: Positive | None = None

    def __post_init__(self):
        for name in self.decay_also:
            if name not in TOKENS_AND_TABLES:
                raise ValueError(f'decay_also: {name!r} is none of {", ".join(TOKENS_AND_TABLES)}.')
        for expression, _ in self.constant_rates:
            try:
                re.compile(expression)
            except re.error as error:
                told = f'constant_rates: {expression!r} is no expression ({error}).'
                raise ValueError(told) from None


def make_schedule(config: OptimizerConfig, clock: Clock) -> Schedule:
    """The learning rate as a function of the step (int32 scalar, 0 for the first update)."""
    ratio = clock.batch_size / config.reference_batch
    factor = {'none': 1.0, 'linear': ratio, 'sqrt': ratio**0.5}[config.scaling]
    ends = factor if config.scale_ends else 1.0
    peak = config.learning_rate * factor
    start, end = config.warmup_learning_rate * ends, config.end_learning_rate * ends
    warmup = min(clock.steps(config, 'warmup', path='optimizer') or 0, clock.total_steps)
    length = round(config.horizon * clock.total_steps)
    remaining = max(length - warmup, 1)
    if config.schedule == 'linear':
        falling = optax.linear_schedule(peak, end, max(length, 1))
        rising = optax.linear_schedule(start / peak, 1.0, warmup) if warmup else lambda step: 1.0
        return lambda step: falling(step) * rising(step)
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, remaining, alpha=end / peak)
    elif config.schedule == 'multistep':
        bounds = [round(percent / 100 * length) - warmup for percent in config.decay_percent]
        main = optax.piecewise_constant_schedule(peak, {b: config.decay_factor for b in bounds})
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(start, peak, warmup), main], [warmup])


def make_decay_schedule(config: OptimizerConfig, clock: Clock) -> Schedule | float:
    """The weight decay as a function of the step (int32 scalar, 0 for the first update), or the
    number that it always is.
    """
    start, end = config.weight_decay, config.end_weight_decay
    if end is None:
        return start
    horizon = config.weight_decay_horizon or config.horizon
    falling = optax.cosine_decay_schedule(1.0, max(round(horizon * clock.total_steps), 1))
    return lambda step: end + (start - end) * falling(step)


def make_optimizer(
    config: OptimizerConfig,
    schedule: Schedule,
    *,
    decay: Schedule | float,
    decayed: Any,
    layers: Any,
    num_layers: int,
    constant: dict[str, float] | None = None,
) -> optax.GradientTransformation:
    """The update rule.

    Args:
        schedule, decay: learning rate and weight decay.
        decayed: tree of bool over the parameters, True where weight decay applies.
        layers: tree over the parameters of layer ids (int, or int array [depth] for stacked
            blocks), 0 the embedding.
        num_layers: the id of the head, which keeps the full rate.
        constant: learning rates by path, for parameters that follow neither schedule.
    """
    constant, parts = constant or {}, []
    add_decay = _add_decay(decay, decayed, constant, config.weight_decay)
    scale_by_rate = _scale_by_rate(schedule, constant)
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.rule == 'adamw':
        adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
        parts.append(optax.chain(adam, add_decay, scale_by_rate))
    else:
        parts.append(add_decay)
        if config.rule == 'lars':
            parts.append(_scale_by_trust(config.trust, decayed, layers))
        # The rate is applied behind the momentum: where it changes, older gradients change too.
        parts += [optax.trace(decay=config.momentum), scale_by_rate]
    if config.layer_decay is not None and config.layer_decay != 1:
        parts.append(_scale_by_layer(config.layer_decay, layers, num_layers))
    return optax.chain(*parts)


def trained(params: dict[str, Any], *, frozen: tuple[str, ...]) -> dict[str, Any]:
    """The parts of the parameters, or of a tree like them, that are not frozen.

    Raises UserError where there is no part of a name, or nothing left to train.
    """
    for part in frozen:
        if part not in params:
            raise UserError(
                f'config.optimizer.frozen names {part!r}, but the parameters of this run have the '
                f'parts {", ".join(sorted(params))}.'
            )
    kept = {name: value for name, value in params.items() if name not in frozen}
    if not kept:
        raise UserError(
            f'config.optimizer.frozen names all parts of the parameters ({", ".join(params)}), so '
            'that nothing would be trained: leave one out.'
        )
    return kept


def _add_decay(
    decay: Schedule | float, decayed: Any, constant: dict[str, float], first: float
) -> optax.GradientTransformation:
    """Updates plus the decay times the parameter, where `decayed`; of the parameters in `constant`
    plus `first` times it.
    """
    if not callable(decay):
        return optax.add_decayed_weights(decay, mask=decayed)

    def added(now: jax.Array, path: tuple, update: Any, param: Any, wanted: bool) -> jax.Array:
        factor = first if path_name(path) in constant else now
        return update + factor * param if wanted else update

    return _by_schedule(decay, added, decayed)


def _scale_by_rate(schedule: Schedule, constant: dict[str, float]) -> optax.GradientTransformation:
    """Updates times minus the learning rate; parameters in `constant` have that rate."""
    if not constant:
        return optax.scale_by_learning_rate(schedule)

    def scaled(now: jax.Array, path: tuple, update: Any, param: Any) -> jax.Array:
        return update * -constant.get(path_name(path), now)

    return _by_schedule(schedule, scaled)


def _by_schedule(
    schedule: Schedule, function: Callable[..., jax.Array], *trees: Any
) -> optax.GradientTransformation:
    """Updates become function(the schedule's number, path, update, parameter, *leaves of trees).

    optax has the like, but hides the type of its count, which goes on in steps that are refused
    (`TrainStep`), or knows no paths.
    """

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def apply(updates: Any, state: optax.ScaleByScheduleState, params: Any) -> tuple[Any, Any]:
        one = functools.partial(function, schedule(state.count))
        updates = jax.tree_util.tree_map_with_path(one, updates, params, *trees)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, apply)


def _scale_by_trust(trust: float, scaled: Any, layers: Any) -> optax.GradientTransformation:
    """Updates times trust * the parameter's norm / their own, where `scaled`; by 1 where one of
    these norms is 0.
    """

    def apply(updates: Any, params: Any) -> Any:
        def one(update: jax.Array, param: jax.Array, wanted: bool, layer: Any) -> jax.Array:
            if not wanted:
                return update
            axes = tuple(range(np.ndim(layer), update.ndim))  # stacked blocks have norms each
            mine, its = (jnp.sqrt((x**2).sum(axes, keepdims=True)) for x in (param, update))
            ratio = jnp.where((mine > 0) & (its > 0), trust * mine / jnp.maximum(its, 1e-38), 1.0)
            return update * ratio

        return jax.tree.map(one, updates, params, scaled, layers)

    return optax.stateless(apply)


def _scale_by_layer(decay: float, layers: Any, num_layers: int) -> optax.GradientTransformation:
    def scaled(update: jax.Array, layer: Any) -> jax.Array:
        factor = jnp.asarray(decay ** (num_layers - jnp.asarray(layer, jnp.float32)))
        return update * factor.reshape(factor.shape + (1,) * (update.ndim - factor.ndim))

    def apply(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(scaled, updates, layers)

    return optax.stateless(apply)
