"""I-JEPA against plain NumPy loops over images, blocks and tokens, on a grid that is not square.

Encoder and predictor have their own tests; masks, what is fed to whom, target and loss are done by
hand.
"""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_decay_schedule, make_schedule
from tests.masking import reference
from tests.models.reference import norm

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
GRID, STEP = (5, 6), 7
IMAGES = jax.random.uniform(jax.random.key(1), (3, 40, 48, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(2), 3)}


def prepare(method='ijepa', **changes):
    """The objective on 5 x 6 patches of 8 pixels, and random variables without special values."""
    config = experiment.default_config(method)
    config.data.update(image_size=(40, 48), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, class_token=False)
    config.objective.predictor.update(width=12, depth=1, heads=3)
    if method != 'salt':
        config.objective.masking.update(num_context=7, num_targets=2)
    config.train.total_steps = 1
    config.train.ema.decay = 0.9
    given = [(name.replace('__', '.'), str(value)) for name, value in changes.items()]
    run = experiment.from_config(configs.override(config, experiment.Experiment, given))
    objective = assembly.make_objective(run, fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)
    params, ema = (
        jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes) for _ in range(2)
    )
    return objective, {'params': params, 'ema': ema}


def seen(objective):
    return (np.float64(IMAGES) - objective.inputs.mean) / objective.inputs.std


def predictions_by_hand(objective, params, expected, context=lambda tokens: tokens):
    """[B][T] predictions [P,D], each block of each image in a call of its own."""
    images = np.float32(seen(objective))

    @jax.jit
    def predict(image, visible, targets):
        tokens = objective.encoder.apply(
            {'params': params['encoder']}, image[None], visible_ids=visible[None]
        ).tokens
        return objective.predictor.apply(
            {'params': params['predictor']},
            context(tokens),
            visible=visible[None],
            targets=targets[None, None],
            grid=GRID,
        )[0, 0]

    return [
        [np.float64(predict(image, np.array(visible), np.array(block))) for block in targets]
        for image, (visible, targets) in zip(images, expected, strict=True)
    ]


def target_by_hand(objective, ema):
    whole = objective.encoder.apply({'params': ema['encoder']}, np.float32(seen(objective)))
    return norm(np.float64(whole.tokens), eps=1e-5)


def smooth_l1(difference):
    size = np.abs(difference)
    return np.where(size < 1, 0.5 * size**2, size - 0.5)


def loss_by_hand(predictions, target, expected, groups=None):
    losses = []
    for image, (_, targets) in enumerate(expected):
        for block, prediction in zip(targets, predictions[image], strict=True):
            for place in block:
                members = [p for p in block if groups is None and p == place]
                if groups is not None:
                    members = [p for p in block if groups[image, p] == groups[image, place]]
                mine = np.mean([prediction[block.index(p)] for p in members], axis=0)
                its = np.mean([target[image, p] for p in members], axis=0)
                losses.append(smooth_l1(mine - its).mean())
    return np.mean(losses)


def loss_of(objective, variables, key):
    return float(jax.jit(objective.loss)(variables, BATCH, key, STEP)[0])


@pytest.mark.parametrize('schedule', ['none', 'constant'])
def test_the_loss(schedule):
    """Token by token, and on group means within each block."""
    changes = {'schedule': schedule, 'num_merged': 12, 'num_steps': 2}
    objective, variables = prepare(**{f'objective__morphing__{k}': v for k, v in changes.items()})
    drawn = keys.named(BATCH['keys'], 'mask')
    expected = reference.multi_block(drawn, STEP, objective.masking, GRID)
    mask = np.ones((3, 30), bool)
    for image, (visible, _) in enumerate(expected):
        mask[image, visible] = False
    np.testing.assert_array_equal(objective.mask(variables, BATCH, STEP), mask)
    predictions = predictions_by_hand(objective, variables['params'], expected)
    target, groups, key = target_by_hand(objective, variables['ema']), None, jax.random.key(3)
    if schedule == 'constant':
        groups = objective.morphing.groups(jax.random.split(key, 1)[0], np.float32(target))
        groups = np.asarray(groups)
        blocks = [block for _, targets in expected for block in targets]
        images = np.arange(3).repeat(2)
        shared = [len(b) - len(set(groups[i, b])) for i, b in zip(images, blocks, strict=True)]
        assert sum(shared) > 0
    by_hand = loss_by_hand(predictions, target, expected, groups)
    np.testing.assert_allclose(loss_of(objective, variables, key), by_hand, rtol=1e-5)


def test_a_prediction_knows_the_context_alone():
    """Of an image in which everything else is changed it is the same."""
    objective, variables = prepare()
    blocks = objective.blocks(BATCH, STEP)
    hidden = np.asarray(objective.mask(variables, BATCH, STEP))
    hidden = hidden.reshape(3, *GRID).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    predict = jax.jit(
        lambda images: objective.predict(variables, {**BATCH, 'images': images}, blocks)
    )
    found, same, other = (
        predict(np.where(where, 0.5, IMAGES))['blocks'] for where in (False, hidden, ~hidden)
    )
    np.testing.assert_array_equal(same, found)
    assert (np.abs(other - found).max(axis=(1, 2, 3)) > 1e-3).all()


def test_pictures_show_context_targets_and_distances():
    objective, variables = prepare()
    sheet = jax.eval_shape(objective.pictures, variables, BATCH, jax.random.key(3), STEP)['blocks']
    titles = ['seen', 'target 1', 'target 2', 'distance where predicted, else black']
    assert [panel.title for panel in sheet] == titles


def test_a_block_that_does_not_fit_is_one_sentence():
    with pytest.raises(UserError, match=r'masking.num_context = 25: the large block has'):
        prepare(objective__masking__num_context=25)


def test_the_recipe():
    """The released optimiser: 625 steps an epoch, decay from 0.04 to 0.4 on the mask token too."""
    run = experiment.from_config(configs.load(str(CONFIGS / 'ijepa.py')))
    clock = assembly.make_clock(run, 1_281_167)
    total, warm = 600 * 625, 40 * 625
    assert clock.total_steps == total
    rate, decay = make_schedule(run.optimizer, clock), make_decay_schedule(run.optimizer, clock)
    average = run.train.ema.decays(clock)
    for step in (0, 1000, warm, 200_000, total):
        wave = 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        expected = 1e-6 + (1e-3 - 1e-6) * wave
        if step < warm:
            expected = 2e-4 + (1e-3 - 2e-4) * step / warm
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4)
        expected = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / total))
        np.testing.assert_allclose(decay(step), expected, rtol=1e-4)
        np.testing.assert_allclose(average(step), 0.996 + 0.004 * step / total, rtol=1e-6)
    objective = assembly.make_objective(run, fields=image_fields(1000), clock=clock)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert 'class_token' not in params['encoder']
    assert params['predictor']['blocks']['norm1']['scale'].shape == (6, 384)
    assert params['predictor']['predict']['kernel'].shape == (384, 768)
    decayed = objective.weight_decayed(params, also=run.optimizer.decay_also)
    assert decayed['predictor']['mask_token'] and not decayed['predictor']['embed']['bias']
    view = objective.views(run.data)['images']
    assert view.flip == 0 and tuple(view.crop.scale) == (0.3, 1.0)
