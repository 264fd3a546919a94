"""DMT-JEPA against plain NumPy loops; its head has a test of its own (tests/models)."""

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.models.aggregation import Aggregation
from tests.masking import reference
from tests.objectives.test_ijepa import (
    BATCH,
    CONFIGS,
    GRID,
    STEP,
    loss_by_hand,
    loss_of,
    predictions_by_hand,
    prepare,
    target_by_hand,
)

HEAD = Aggregation(heads=2)  # as the encoder


def gathered_by_hand(params, target):
    """The head's output around each patch, from the four of its eight neighbours most like it."""
    units = target / np.linalg.norm(target, axis=-1, keepdims=True)
    chosen = np.zeros((*target.shape[:2], 4), int)
    for image, place in np.ndindex(*target.shape[:2]):
        row, column = divmod(place, GRID[1])
        near = [
            (row + down) % GRID[0] * GRID[1] + (column + across) % GRID[1]
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            if (down, across) != (0, 0)
        ]
        near.sort(key=lambda p: -units[image, p] @ units[image, place])  # noqa: B023
        chosen[image, place] = near[:4]
    variables = {'params': params['aggregation']}
    return np.float64(HEAD.apply(variables, np.float32(target), chosen, method='around'))


@pytest.mark.parametrize('schedule', ['none', pytest.param('constant', marks=pytest.mark.slow)])
def test_the_loss(schedule):
    """The average's tokens are normalised, then gathered; the context is gathered before it is
    predicted from.
    """
    changes = {'schedule': schedule, 'num_merged': 12, 'num_steps': 2}
    changes = {f'objective__morphing__{k}': v for k, v in changes.items()}
    objective, variables = prepare('dmtjepa', **changes)
    assert objective.averaged == ('encoder', 'aggregation')
    drawn = keys.named(BATCH['keys'], 'mask')
    expected = reference.multi_block(drawn, STEP, objective.masking, GRID)
    params, ema = variables['params'], variables['ema']

    def context(tokens):
        return HEAD.apply({'params': params['aggregation']}, tokens)

    predictions = predictions_by_hand(objective, params, expected, context)
    target = gathered_by_hand(ema, target_by_hand(objective, ema))
    groups, key = None, jax.random.key(3)
    if schedule == 'constant':
        groups = objective.morphing.groups(jax.random.split(key, 1)[0], np.float32(target))
        groups = np.asarray(groups)
    by_hand = loss_by_hand(predictions, target, expected, groups)
    np.testing.assert_allclose(loss_of(objective, variables, key), by_hand, rtol=1e-4)


@pytest.mark.parametrize('changes', [{'window': 4}, {'window': 3, 'neighbours': 9}])
def test_a_window_without_a_middle_or_too_small_is_refused(changes):
    with pytest.raises(UserError, match='window = .*, neighbours = '):
        prepare('dmtjepa', **{f'objective__{name}': value for name, value in changes.items()})


def test_a_window_larger_than_the_grid_is_one_sentence():
    with pytest.raises(UserError, match='config.objective.window = 7 is more than the grid of 5x6'):
        prepare('dmtjepa', objective__window=7)


def test_the_recipe_averages_encoder_and_head():
    run = experiment.from_config(configs.load(str(CONFIGS / 'dmtjepa.py')))
    objective = assembly.make_objective(run, fields=image_fields(1000))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert set(params) == {'encoder', 'aggregation', 'predictor'}
    assert set(run.train.ema.of(params)) == set(objective.averaged)
    mlp = params['aggregation']['block2']['mlp']['fc1']['kernel']
    assert mlp.shape == (768, 4 * 768)
    decayed = objective.weight_decayed(params)['aggregation']['block1']
    assert decayed['mlp']['fc1']['kernel'] and not decayed['norm1']['scale']
