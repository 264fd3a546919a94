"""DMJD against a plain NumPy loop: two masks, HOG at hidden and at visible patches."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

CONFIG = Path(__file__).parents[2] / 'configs' / 'dmjd.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(3), 3)}
KEY = jax.random.key(4)
N = 16


def make(**changes):
    config = experiment.default_config('dmjd')
    config.data.image_size = (32, 32)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, class_token=False)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.objective.masking.cell = (1, 1)
    config.objective.update(changes)
    config.train.total_steps = 1
    return assembly.make_objective(experiment.from_config(config), fields=image_fields(10))


@pytest.fixture(scope='module')
def prepared():
    objective = make(visible_weight=0.3)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)
    return objective, {'params': params}


def visible_by_hand():
    """What either view shows, [3,6] each: the first 6 of a permutation; none of them, since the
    second hides int(0.4 * 16) = 6 of these, and it hides 10: those, and the next 4.
    """
    first, second = [], []
    for key in keys.named(BATCH['keys'], 'mask'):
        order = np.argsort(np.asarray(jax.random.uniform(key, (N,))))
        first.append(np.sort(order[:6]))
        second.append(np.sort(order[10:]))
    return np.stack(first), np.stack(second)


def head_by_hand(params, x):
    """Three linear layers with layer norms, the last without parameters, and one linear layer."""
    params = jax.tree.map(np.float64, params)
    for i in (1, 2, 3):
        linear = params['visible_projector'][f'fc{i}']
        x = x @ linear['kernel'] + linear['bias']
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        if i < 3:
            norm = params['visible_projector'][f'norm{i}']
            x = x * norm['scale'] + norm['bias']
            x = x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))
    last = params['visible_head']['linear']
    return x @ last['kernel'] + last['bias']


def target_by_hand():
    """Histograms [3,N,108] of the images in levels up to 255: 2x2 cells of 4x4 pixels, 3 colours,
    9 directions, normalised with 1e-5 added to the variance.
    """
    images = 255 * np.float64(IMAGES)
    target = np.zeros((3, N, 2, 2, 3, 9))
    for image, row, column, colour in np.ndindex(3, 32, 32, 3):
        plane = images[image, ..., colour]
        dy = plane[row + 1, column] - plane[row - 1, column] if 0 < row < 31 else 0.0
        dx = plane[row, column + 1] - plane[row, column - 1] if 0 < column < 31 else 0.0
        direction = int(np.degrees(np.arctan2(dy, dx)) % 180 // 20)
        patch = row // 8 * 4 + column // 8
        cell = row % 8 // 4, column % 8 // 4
        target[image, patch, *cell, colour, direction] += np.hypot(dx, dy) / 16
    target -= target.mean(axis=-1, keepdims=True)
    target /= np.sqrt((target**2).mean(axis=-1, keepdims=True) + 1e-5)
    return target.reshape(3, N, 108)


@pytest.fixture(scope='module')
def by_hand(prepared):
    """The predictions [2,3,N,108] of both views, the target, and what is visible [2,3,N]."""
    objective, variables = prepared
    params = variables['params']

    @jax.jit
    def decoded(visible):
        encoded = objective.encode(params, IMAGES, visible=visible)
        return encoded.tokens, objective.decode(params, encoded, visible)

    predictions, shown = [], np.zeros((2, 3, N), bool)
    for view, visible in enumerate(visible_by_hand()):
        tokens, prediction = (np.float64(x) for x in decoded(jnp.asarray(visible)))
        for image, places in enumerate(visible):
            shown[view, image, places] = True
            prediction[image, places] = head_by_hand(params, tokens[image])
        predictions.append(prediction)
    return np.stack(predictions), target_by_hand(), shown


def losses_by_hand(predictions, target, shown):
    hidden, visible = [], []
    for view, image, token in np.ndindex(2, 3, N):
        d = np.abs(predictions[view, image, token] - target[image, token])
        if shown[view, image, token]:
            visible.append(np.where(d < 2, d**2 / 4, d - 1).mean())
        else:
            hidden.append((d**2).mean())
    assert (len(hidden), len(visible)) == (60, 36)
    return np.mean(hidden), np.mean(visible)


def test_the_loss(prepared, by_hand):
    objective, variables = prepared
    loss, metrics, state = jax.jit(objective.loss)(variables, BATCH, KEY, 0)
    hidden, visible = losses_by_hand(*by_hand)
    np.testing.assert_allclose(metrics['hidden_loss'], hidden, rtol=1e-4)
    np.testing.assert_allclose(metrics['visible_loss'], visible, rtol=1e-4)
    np.testing.assert_allclose(loss, hidden + 0.3 * visible, rtol=1e-4)
    assert state == {}
    np.testing.assert_array_equal(objective.mask(variables, BATCH, 0), ~by_hand[2][0])


@pytest.mark.slow
def test_both_views_are_morphed_by_the_same_groups(prepared, by_hand):
    changes = {'schedule': 'constant', 'num_merged': 8, 'num_steps': 2}
    morphed = make(morphing=changes)
    predictions, target, shown = by_hand
    draw = jax.random.split(KEY, 1)[0]
    groups = np.asarray(morphed.morphing.groups(draw, np.float32(target)))
    assert all(len(np.unique(image)) == 8 for image in groups)

    def grouped(tokens):
        return np.stack(
            [
                [image[ids == group].mean(axis=0) for group in ids]
                for image, ids in zip(tokens, groups, strict=True)
            ]
        )

    found = jax.jit(morphed.loss)(prepared[1], BATCH, KEY, 0)[1]
    predictions = np.stack([grouped(prediction) for prediction in predictions])
    hidden, visible = losses_by_hand(predictions, grouped(target), shown)
    np.testing.assert_allclose(found['hidden_loss'], hidden, rtol=1e-4)
    np.testing.assert_allclose(found['visible_loss'], visible, rtol=1e-4)


@pytest.mark.slow
def test_the_pictures_show_both_views(prepared, by_hand):
    objective, variables = prepared
    sheets = jax.jit(objective.pictures)(variables, BATCH, KEY, 0)
    assert list(sheets) == ['views']
    predictions, target, shown = by_hand
    for view in range(2):
        mask, distances = sheets['views'][2 * view : 2 * view + 2]
        np.testing.assert_array_equal(mask.values, ~shown[view])
        squares = ((predictions[view] - target) ** 2).mean(axis=-1)
        np.testing.assert_allclose(distances.values, squares, rtol=1e-3)


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    assert (run.data.batch_size, run.train.total_epochs) == (512, 400)
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    np.testing.assert_allclose(warmup / clock.total_steps, 20 / 400, rtol=1e-3)
    np.testing.assert_allclose(rate(warmup), 6e-4 * 512 * (1.0 / 0.6) / 256, rtol=1e-5)
    assert run.objective.masking.count((14, 14)) == 4 * 30
    assert (run.objective.visible_weight, run.objective.visible_distance.beta) == (1, 2)
    decoder, view = run.objective.decoder, run.objective.views(run.data)['images']
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 8, 16)
    assert view.crop.scale == (0.5, 1.0) and view.colors == Colors() and view.flip == 0.5
    assert not run.model.class_token


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'visible_weight': -1.0}, 'visible_weight = -1.0'),
        ({'masking': {'covered': 0.5}}, 'covered = 0.5 is below ratio = 0.6'),
        ({'masking': {'cell': (3, 3)}}, 'does not divide into such cells'),
    ],
)
def test_impossible_options_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        make(**changes)
    assert '\n' not in str(error.value)
