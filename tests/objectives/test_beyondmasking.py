"""Beyond Masking against plain NumPy loops: what is seen, framed, compared and averaged.

Encoder and decoder have tests of their own, corruptions and zooms as well
(tests/test_corruptions.py, tests/test_zooming.py, whose loops are used again here).
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import DataConfig, image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule
from tests.test_zooming import amid_reflection, areas_by_hand

CONFIG = Path(__file__).parents[2] / 'configs' / 'beyondmasking.py'
KEY, SIZE, GRID, P = jax.random.key(3), (32, 24), (4, 3), 8
BORDERS = {'zoom_in': (5, 3), 'zoom_out': (9, 7)}  # a seventh and two of the sides, rounded
SCENES = {'zoom_in': (42, 30), 'zoom_out': (23, 17)}
IMAGES = np.random.default_rng(0).random((3, *SIZE, 3)).astype(np.float32)


def make(corruption='zoom_in', masking='random', **options):
    config = experiment.default_config('beyondmasking')
    config.data.update(image_size=SIZE, batch_size=3)
    config.model.update(patch_size=(P, P), width=16, depth=1, heads=2, class_token=False)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.train.total_steps = 1
    names = {'corruption.name': corruption, 'masking.name': masking, **options}
    given = [(f'objective.{name}', str(value)) for name, value in names.items()]
    configs.override(config, experiment.Experiment, given)
    return assembly.make_objective(experiment.from_config(config), fields=image_fields(10))


def prepare(*names, **options):
    """An objective, random variables without special values, and a batch."""
    objective = make(*names, **options)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes)
    batch = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(2), 3)}
    if objective.zooms:
        size = objective.corruption.scene_size(SIZE)
        batch['scene'] = rng.random((3, *size, 3)).astype(np.float32)
    return objective, {'params': params}, batch


def cut(images):
    """Patches [3,12,192]."""
    rows, columns = GRID
    return np.stack(
        [
            images[:, P * row : P * row + P, P * column : P * column + P].reshape(3, -1)
            for row in range(rows)
            for column in range(columns)
        ],
        axis=1,
    )


def put_together(patches):
    images = np.zeros((3, *SIZE, 3))
    for place in range(12):
        row, column = (P * x for x in divmod(place, 3))
        images[:, row : row + P, column : column + P] = patches[:, place].reshape(3, P, P, 3)
    return images


def target_by_hand(images):
    """Patches of images in [0, 1], every channel with mean 0 and variance 1."""
    patches = cut(np.float64(images)).reshape(3, 12, P * P, 3)
    for image, place, channel in np.ndindex(3, 12, 3):
        values = patches[image, place, :, channel]
        patches[image, place, :, channel] = (values - values.mean()) / values.std(ddof=1)
    return patches.reshape(3, 12, -1)


def visible_by_hand(batch):
    draws = keys.named(batch['keys'], 'mask')
    orders = [np.argsort(jax.random.uniform(key, (12,))) for key in draws]
    return np.array([sorted(order[9:]) for order in orders])  # the 9 lowest are hidden


def restored_by_hand(objective, variables, seen, visible):
    """The networks' prediction from what is seen."""

    @jax.jit
    def networks(params, images):
        encoder = {'params': params['encoder']}
        tokens = objective.encoder.apply(encoder, images, visible_ids=visible).tokens
        given = {'visible_ids': visible, 'grid': GRID, 'features': 3 * P * P}
        return objective.decoder.apply({'params': params['decoder']}, tokens, **given)

    inputs = objective.inputs
    images = np.float32((seen - np.array(inputs.mean)) / np.array(inputs.std))
    return np.float64(networks(variables['params'], images))


def averaged(prediction, target, visible, groups=None):
    """Mean square over the hidden patches, or over all; after their groups' means are taken."""
    total, count = 0.0, 0
    for image in range(3):
        for place in range(12):
            if visible is not None and place in visible[image]:
                continue
            of = [place] if groups is None else groups[image] == groups[image][place]
            difference = prediction[image][of].mean(axis=0) - target[image][of].mean(axis=0)
            total, count = total + (difference**2).mean(), count + 1
    return total / count


def zoomed_by_hand(name, objective, variables, batch, visible, groups=None):
    """Losses of patches and border; of a zoom out there is no border."""
    scene, border, size = np.float64(batch['scene']), BORDERS[name], SCENES[name]
    whole = target_by_hand(areas_by_hand(scene, SIZE))
    rows, columns = border
    if name == 'zoom_in':

        def framed(patches):
            return areas_by_hand(put_together(patches), size)[:, rows:-rows, columns:-columns]

        seen = scene[:, rows:-rows, columns:-columns]
        target = target_by_hand(seen)
    else:
        draws = keys.named(batch['keys'], 'corruption')
        corners = [np.asarray(jax.random.randint(key, (2,), 0, np.array(border))) for key in draws]

        def around(scenes):
            places = zip(scenes, corners, strict=True)
            return np.stack([amid_reflection(one, corner, SIZE) for one, corner in places])

        def framed(patches):
            return around(areas_by_hand(put_together(patches), size))

        seen, target = around(scene), cut(framed(whole))
    np.testing.assert_allclose(objective.seen(batch), seen, atol=1e-6)
    restored = restored_by_hand(objective, variables, seen, visible)
    groups = groups and groups(np.float32(target))
    patches = averaged(cut(framed(restored)), target, visible, groups)
    pair = [areas_by_hand(put_together(x), size) for x in (restored, whole)]
    strips = [
        np.s_[:, :rows],
        np.s_[:, -rows:],
        np.s_[:, rows:-rows, :columns],
        np.s_[:, rows:-rows, -columns:],
    ]
    return patches, sum(((pair[0][strip] - pair[1][strip]) ** 2).mean() for strip in strips)


def test_zoomed_in_with_masks():
    objective, variables, batch = prepare()
    patches, border = zoomed_by_hand('zoom_in', objective, variables, batch, visible_by_hand(batch))
    loss, metrics, state = jax.jit(objective.loss)(variables, batch, KEY, 0)
    np.testing.assert_allclose(loss, 0.8 * patches + 0.2 * border, rtol=1e-4)
    np.testing.assert_allclose(metrics['patch_loss'], patches, rtol=1e-4)
    np.testing.assert_allclose(metrics['border_loss'], border, rtol=1e-4)
    assert state == {} and set(metrics) == {'patch_loss', 'border_loss'}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'masked'), [('zoom_in', False), ('zoom_out', False), ('zoom_out', True)]
)
def test_zoomed(name, masked):
    objective, variables, batch = prepare(name, 'random' if masked else 'none', border_weight=0.5)
    visible = visible_by_hand(batch) if masked else None
    patches, border = zoomed_by_hand(name, objective, variables, batch, visible)
    loss = jax.jit(objective.loss)(variables, batch, KEY, 0)[0]
    expected = 0.5 * patches + 0.5 * border if name == 'zoom_in' else patches
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert ('mask_token' in variables['params']['decoder']) == masked
    assert (objective.mask(variables, batch, 0) is None) == (not masked)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['zoom_in', 'zoom_out'])
def test_morphed_on_groups_of_the_patches_that_are_seen(name):
    options = {'schedule': 'constant', 'num_merged': 5, 'num_steps': 1}
    changes = {f'morphing.{key}': value for key, value in options.items()}
    objective, variables, batch = prepare(name, 'random', **changes)

    def groups(target):
        found = np.asarray(objective.morphing.groups(jax.random.split(KEY, 1)[0], target))
        assert all(len(np.unique(row)) == 7 for row in found)
        return found

    visible = visible_by_hand(batch)
    patches, border = zoomed_by_hand(name, objective, variables, batch, visible, groups)
    loss = jax.jit(objective.loss)(variables, batch, KEY, 0)[0]
    expected = 0.8 * patches + 0.2 * border if name == 'zoom_in' else patches
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # What groups the patches by their looks, looks at what is seen.
    np.testing.assert_array_equal(
        objective.morphed(variables, batch)['images'], objective.seen(batch)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'masked'), [('decoloring', False), ('distortion', False), ('random_kernel', True)]
)
def test_the_clean_image_is_restored_from_a_corrupted_one(name, masked):
    objective, variables, batch = prepare(name, 'random' if masked else 'none')
    seen = objective.corruption(keys.named(batch['keys'], 'corruption'), IMAGES).images
    assert np.abs(seen - IMAGES).max() > 0.1
    visible = visible_by_hand(batch) if masked else None
    restored = restored_by_hand(objective, variables, np.asarray(seen), visible)
    loss, metrics, _ = jax.jit(objective.loss)(variables, batch, KEY, 0)
    expected = averaged(restored, target_by_hand(IMAGES), visible)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert metrics == {}
    assert set(objective.views(DataConfig(image_size=SIZE))) == {'images'}


def test_the_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 4096 * 312)
    objective = assembly.make_objective(run, fields=image_fields(1000), clock=clock)
    assert 196 - objective.masking.count((14, 14)) == 49
    views = objective.views(run.data)
    assert views['scene'].image_size == (288, 288) and views['images'].image_size == (224, 224)
    assert views['scene'].crop.scale == (0.2, 1.0) and views['scene'].flip == 0.5
    zoomed_out = make('zoom_out').views(DataConfig(image_size=(224, 224)))
    assert zoomed_out['scene'].image_size == (160, 160)
    rate = make_schedule(run.optimizer, clock)
    np.testing.assert_allclose(rate(40 * 312), 1.5e-4 * 4096 / 256, rtol=1e-5)
    np.testing.assert_allclose(rate(300 * 312), 1e-5, rtol=1e-3)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert 'class_token' not in params['encoder'] and run.model.depth == 12
    decoder = params['decoder']
    assert decoder['predict']['kernel'].shape == (384, 768)
    assert decoder['blocks']['norm1']['scale'].shape == (4, 384)
    assert run.objective.decoder.heads == 6


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target.name': 'hog'}, 'what is predicted of a scene are pixels'),
        ({'corruption.border': 0.01}, 'border = 0.01: less than a pixel of images of 32x24'),
        ({'corruption': 'random_kernel', 'corruption.size': 4}, 'size = 4: it must be odd'),
        ({'corruption.border': 1.5}, 'border=1.5: must be above 0 and at most 1'),
    ],
)
def test_impossible_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        make(**options)
    assert '\n' not in str(error.value)
