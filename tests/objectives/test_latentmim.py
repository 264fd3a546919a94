"""Latent MIM against plain NumPy loops over images and tokens.

Encoder, projector and decoder have tests of their own; views, masks, what is fed to whom and the
loss are done by hand.
"""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.clock import Clock
from mim_jax.data import DataConfig, image_fields
from mim_jax.errors import UserError
from mim_jax.models.patches import cut_from_cells
from mim_jax.optimizers import make_schedule

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
GRID, GAP, VISIBLE, STEP = (4, 3), 2, 4, 30
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 24, 3))
CELLS = jax.random.uniform(jax.random.key(5), (3, 40, 30, 3))
BATCH = {'images': IMAGES, 'cells': CELLS, 'keys': keys.per_example(jax.random.key(2), 3)}


def prepare(**changes):
    """The objective on 4 x 3 patches of 8 pixels, and random variables without special values."""
    config = experiment.default_config('latentmim')
    config.data.update(image_size=(32, 24), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.update(gap=GAP, hidden=12)
    config.objective.masking.ratio = 0.65
    config.objective.decoder.update(width=12, depth=1, heads=3)
    config.train.ema.decay = 0.9
    config.train.total_steps = 100
    given = [(name.replace('__', '.'), str(value)) for name, value in changes.items()]
    run = experiment.from_config(configs.override(config, experiment.Experiment, given))
    clock = Clock(3, total_steps=100)
    objective = assembly.make_objective(run, fields=image_fields(10), clock=clock)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)
    params, ema = (
        jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes) for _ in range(2)
    )
    return objective, {'params': params, 'ema': ema}


def seen_by_hand():
    """One patch of 8 pixels out of each cell of 10."""
    seen = np.zeros((3, 32, 24, 3), np.float32)
    for image, key in enumerate(keys.named(BATCH['keys'], 'gap')):
        corners = np.asarray(jax.random.randint(key, (12, 2), 0, GAP))
        for place, (down, across) in enumerate(corners):
            row, column = divmod(place, 3)
            top, left = 10 * row + down, 10 * column + across
            patch = np.asarray(CELLS[image, top : top + 8, left : left + 8])
            seen[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = patch
    return seen


def places_by_hand():
    visible, hidden = [], []
    for key in keys.named(BATCH['keys'], 'mask'):
        order = np.argsort(jax.random.uniform(key, (12,)))
        hidden.append(sorted(order[: 12 - VISIBLE]))
        visible.append(sorted(order[12 - VISIBLE :]))
    return np.array(visible), np.array(hidden)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loss_by_hand(objective, variables, *, sees='hidden', groups=None):
    visible, hidden = places_by_hand()
    images = np.float32((seen_by_hand() - objective.inputs.mean) / objective.inputs.std)
    projector = objective._projector()

    @jax.jit
    def networks(params, ema, images):
        def projected(params, places):
            encoder = {'params': params['encoder']}
            found = objective.encoder.apply(encoder, images, visible_ids=places)
            return projector.apply({'params': params['projector']}, found.class_and_patches)

        own = projected(params, visible)
        given = {'visible': visible, 'hidden': hidden, 'grid': GRID, 'class_token': own[:, 0]}
        decoder = {'params': params['decoder']}
        predicted = objective.decoder.apply(decoder, own[:, 1:], **given)
        return own[:, 1:], predicted, projected(ema, hidden if sees == 'hidden' else None)[:, 1:]

    own, predicted, target = (
        np.float64(x) for x in networks(variables['params'], variables['ema'], images)
    )
    if sees == 'all':
        target = np.stack([t[h] for t, h in zip(target, hidden, strict=True)])
    if groups is not None:
        groups = groups(np.float32(target))
        means = [
            [[x[i][g == g[n]].mean(axis=0) for n in range(len(g))] for i, g in enumerate(groups)]
            for x in (predicted, target)
        ]
        morphed, target = map(np.array, means)
    else:
        morphed = predicted
    losses = []
    for image in range(3):
        p, t = morphed[image], unit(target[image])
        p = unit((p - p.mean(axis=0)) / (p.std(axis=0, ddof=1) + 1e-4))
        for n in range(len(p)):
            logits = p[n] @ t.T / 0.2
            losses.append(np.log(np.exp(logits).sum()) - logits[n])
    loss = 0.4 * np.mean(losses)
    aim = 0.25 + 0.5 * 0.5 * (1 + math.cos(math.pi * STEP / 100))
    for tokens in (predicted, own):
        cosines = [
            unit(x)[i] @ unit(x)[j] for x in tokens for i in range(len(x)) for j in range(len(x))
        ]
        loss += 0.1 * (np.mean(cosines) - aim) ** 2
    return loss


@pytest.mark.parametrize('sees', ['hidden', pytest.param('all', marks=pytest.mark.slow)])
def test_the_loss(sees):
    objective, variables = prepare(objective__target_sees=sees)
    np.testing.assert_array_equal(objective.seen(BATCH), seen_by_hand())
    mask = np.ones((3, 12), bool)
    np.put_along_axis(mask, places_by_hand()[0], False, axis=1)
    np.testing.assert_array_equal(objective.mask(variables, BATCH, STEP), mask)
    found, metrics, _ = jax.jit(objective.loss)(variables, BATCH, jax.random.key(3), STEP)
    np.testing.assert_allclose(found, loss_by_hand(objective, variables, sees=sees), rtol=1e-4)
    aim = 0.25 + 0.25 * (1 + math.cos(0.3 * math.pi))
    np.testing.assert_allclose(metrics['aimed_similarity'], aim, rtol=1e-5)


@pytest.mark.slow
def test_morphed_on_group_means_of_the_hidden_patches():
    changes = {'schedule': 'constant', 'num_merged': 3, 'num_steps': 1}
    objective, variables = prepare(**{f'objective__morphing__{k}': v for k, v in changes.items()})
    key = jax.random.key(3)

    def groups(target):
        found = np.asarray(objective.morphing.groups(jax.random.split(key, 1)[0], target))
        assert all(len(np.unique(row)) == 5 for row in found)
        return found

    found = jax.jit(objective.loss)(variables, BATCH, key, STEP)[0]
    expected = loss_by_hand(objective, variables, groups=groups)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_without_gaps_there_is_one_view():
    objective, _ = prepare(objective__gap=0)
    assert set(objective.views(DataConfig(image_size=(32, 24)))) == {'images'}
    assert objective.seen(BATCH) is BATCH['images']


def test_patches_are_cut_where_the_corners_say():
    cells = np.arange(2 * 6 * 6 * 1, dtype=np.float32).reshape(2, 6, 6, 1)
    corners = np.array([[[0, 0], [1, 0], [0, 1], [1, 1]], [[1, 1]] * 4])
    found = np.asarray(cut_from_cells(cells, corners, patch_size=(2, 2), gap=1))
    assert found.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(found[0, :2, :2], cells[0, :2, :2])
    np.testing.assert_array_equal(found[0, :2, 2:], cells[0, 1:3, 3:5])
    np.testing.assert_array_equal(found[0, 2:, :2], cells[0, 3:5, 1:3])
    np.testing.assert_array_equal(found[0, 2:, 2:], cells[0, 4:6, 4:6])


def test_a_class_token_is_asked_for():
    with pytest.raises(UserError, match='config.model.class_token = False'):
        prepare(model__class_token=False)


def test_the_recipe():
    run = experiment.from_config(configs.load(str(CONFIGS / 'latentmim.py')))
    clock = assembly.make_clock(run, 4096 * 312)
    objective = assembly.make_objective(run, fields=image_fields(1000), clock=clock)
    assert 196 - objective.masking.count((14, 14)) == 20
    views = objective.views(run.data)
    assert views['cells'].image_size == (280, 280) and views['images'].image_size == (224, 224)
    rate = make_schedule(run.optimizer, clock)
    peak = 1.5e-4 * 4096 / 256
    np.testing.assert_allclose(rate(40 * 312), peak, rtol=1e-5)
    np.testing.assert_allclose(rate(800 * 312), peak / 4, rtol=1e-4)
    decay = run.train.ema.decays(clock)
    np.testing.assert_allclose(decay(400 * 312), 1 - 0.5 * 0.01, rtol=1e-6)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert params['projector']['fc2']['kernel'].shape == (4096, 4096)
    assert params['decoder']['blocks']['cross_attention']['query']['kernel'].shape[:2] == (3, 512)
