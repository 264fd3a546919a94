"""SALT's stages against plain NumPy loops over images and patches, on a grid that is not square.

Encoder and predictor have their own tests; masks, what is fed to whom, targets and losses are done
by hand.
"""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys, panels
from mim_jax import config as configs
from mim_jax.data import image_fields
from mim_jax.optimizers import make_decay_schedule, make_schedule
from tests.masking import reference
from tests.models.reference import norm
from tests.objectives.test_ijepa import BATCH, CONFIGS, GRID, IMAGES, STEP, prepare, seen

COUNTS = {'short': (6, 14), 'long': (3, 20)}
SMALL = {
    f'objective__masking__{name}__{field}': value
    for name, counts in COUNTS.items()
    for field, value in zip(('num_context', 'num_predicted'), counts, strict=True)
}
# A teacher that is wider than the student, with colours of its own.
TEACHER = {
    **{'patch_size': '8,8', 'width': 20, 'depth': 1, 'heads': 2, 'class_token': False},
}
TEACHER = {f'objective__target__model__{name}': value for name, value in TEACHER.items()}
TEACHER |= {'objective__target__mean': '0.1,0.2,0.3', 'objective__target__std': '0.4,0.5,0.6'}


def masks_by_hand(rule):
    """{name: [(seen, predicted), …]} of the images."""
    drawn = keys.named(BATCH['keys'], 'mask')
    return {
        name: [
            row[:2]
            for row in reference.union_of_blocks(
                keys.named(drawn, name), STEP, name, getattr(rule, name), rule, GRID
            )
        ]
        for name in COUNTS
    }


def predictions_by_hand(objective, params, masks):
    """{name: [B,P,D]}: each pass with its own context and its own mask token."""
    images, found = np.float32(seen(objective)), {}
    for group, (name, rows) in enumerate(masks.items()):
        visible, predicted = (np.array(x) for x in zip(*rows, strict=True))

        @jax.jit
        def predict(images, visible, predicted):
            own = {**params['predictor']}
            own['mask_token'] = own['mask_token'][group][None]  # noqa: B023
            encoder = {'params': params['encoder']}
            tokens = objective.encoder.apply(encoder, images, visible_ids=visible).tokens
            given = {'visible': visible, 'targets': predicted[:, None], 'grid': GRID}
            return objective.predictor.apply({'params': own}, tokens, **given)[:, 0]

        found[name] = np.float64(predict(images, visible, predicted))
    return found


def loss_by_hand(predictions, target, masks, distance):
    """The mean of the two passes' means."""
    means = []
    for name, rows in masks.items():
        losses = [
            distance(predictions[name][image, slot] - target[image, place]).mean()
            for image, (_, predicted) in enumerate(rows)
            for slot, place in enumerate(predicted)
        ]
        assert len(losses) == 3 * COUNTS[name][1]
        means.append(np.mean(losses))
    return np.mean(means), means


def test_the_second_stage():
    """Mean absolute difference to the frozen teacher's tokens, each of mean 0 and variance 1."""
    objective, variables = prepare('salt', **SMALL, **TEACHER)
    assert objective.averaged == ()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['teacher']
    rng = np.random.default_rng(1)
    teacher = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes)
    variables = {'params': variables['params'], 'teacher': teacher}
    images = (np.float64(IMAGES) - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    target = objective.target.model.apply({'params': teacher}, np.float32(images)).tokens
    target = norm(np.float64(target), eps=1e-5)
    assert target.shape == (3, 30, 20)
    masks = masks_by_hand(objective.masking)
    predictions = predictions_by_hand(objective, variables['params'], masks)
    expected, (short, long) = loss_by_hand(predictions, target, masks, np.abs)
    found, metrics, state = jax.jit(objective.loss)(variables, BATCH, jax.random.key(3), STEP)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['short_loss'], short, rtol=1e-5)
    np.testing.assert_allclose(metrics['long_loss'], long, rtol=1e-5)
    assert state == {}


@pytest.mark.slow
def test_the_first_stage():
    """Mean square of pixels, normalised patch by patch; the picture shows them."""
    changes = {'target__name': 'pixels', 'target__normalize': True, 'distance__name': 'l2'}
    changes = {f'objective__{name}': value for name, value in changes.items()}
    changes['objective__standardize_target'] = False
    objective, variables = prepare('salt', **SMALL, **changes)
    images = seen(objective)
    target = np.zeros((3, 30, 192))
    for image, place in np.ndindex(3, 30):
        row, column = (8 * x for x in divmod(place, GRID[1]))
        patch = images[image, row : row + 8, column : column + 8].reshape(-1)
        target[image, place] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    masks = masks_by_hand(objective.masking)
    predictions = predictions_by_hand(objective, variables['params'], masks)
    expected, _ = loss_by_hand(predictions, target, masks, np.square)
    found = jax.jit(objective.loss)(variables, BATCH, jax.random.key(3), STEP)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    sheets = jax.jit(objective.pictures)(variables, BATCH, jax.random.key(3), STEP)
    assert set(sheets) == {'short', 'long'}
    for name, (hidden, shown, raw, image) in sheets.items():
        for number, (visible, predicted) in enumerate(masks[name]):
            assert set(np.flatnonzero(~hidden.values[number])) == set(visible)
            assert set(np.flatnonzero(~shown.values[number])) == set(predicted)
        assert isinstance(raw, panels.Image) and raw.title == 'prediction (normalised)'
        np.testing.assert_array_equal(image.mask, ~shown.values)


def test_the_average_may_teach_as_in_v_jepa():
    objective, variables = prepare('salt', **SMALL, objective__target__name='ema')
    assert objective.averaged == ('encoder',)
    loss = jax.eval_shape(objective.loss, variables, BATCH, jax.random.key(3), STEP)[0]
    assert loss.shape == ()


@pytest.mark.parametrize('name, total', [('salt', 160_000), ('salt_teacher', 80_000)])
def test_the_recipes(name, total):
    run = experiment.from_config(configs.load(f'{CONFIGS / name}.py'))
    objective = assembly.make_objective(run, fields=image_fields(1000))
    clock = assembly.make_clock(run, 1_281_167)
    assert clock.total_steps == total and run.data.batch_size == 3072
    rate, decay = make_schedule(run.optimizer, clock), make_decay_schedule(run.optimizer, clock)
    for step in (0, 4_000, 10_000, 50_000, total):
        wave = 0.5 * (1 + math.cos(math.pi * (step - 10_000) / (total - 10_000)))
        expected = 1e-6 + (6.25e-4 - 1e-6) * wave
        if step < 10_000:
            expected = 2e-4 + (6.25e-4 - 2e-4) * step / 10_000
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4)
        expected = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / total))
        np.testing.assert_allclose(decay(step), expected, rtol=1e-4)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    predictor = params['predictor']
    assert predictor['mask_token'].shape == (2, 384)
    assert predictor['blocks']['norm1']['scale'].shape == (12, 384)
    assert predictor['blocks']['attention']['qkv']['kernel'].shape[-2] == 16
    assert predictor['predict']['kernel'].shape == (384, 768)  # of a ViT-B and of pixels alike
    assert objective.target.needs_ema is False


def test_the_second_stage_learns_from_the_first_ones_run():
    for size in ('', ':cifar10', ':embedded'):
        first, second = (
            experiment.from_config(configs.load(f'{CONFIGS / name}.py{size}'))
            for name in ('salt_teacher', 'salt')
        )
        target = second.objective.target
        workdir = Path('runs') / f'salt_teacher{size.replace(":", "_")}'
        assert Path(target.weights) == workdir
        assert target.model == first.model
        assert (target.mean, target.std) == (first.data.mean, first.data.std)
