"""CroCo against plain NumPy loops on a grid that is not square, and its two views.

Encoder and decoder have their own tests; the draw of the mask, what is fed to whom, the target and
the loss are done by hand.
"""

import math
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from mim_jax import assembly, data, experiment, keys, panels
from mim_jax import config as configs
from mim_jax.data import Crop, DataConfig, image_fields
from mim_jax.data.folder import Folder
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
FIRST, SECOND = jax.random.uniform(jax.random.key(1), (2, 3, 32, 24, 3))
BATCH = {'images': FIRST, 'second': SECOND, 'keys': keys.per_example(jax.random.key(2), 3)}
PAIRS = (*image_fields(), data.Field('other', 'image'))


def prepare(fields=PAIRS, **changes):
    """The objective on 4 x 3 patches of 8 pixels, and random variables without special values."""
    config = experiment.default_config('croco')
    config.data.update(image_size=(32, 24), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=2, heads=2, class_token=False)
    config.objective.decoder.update(width=12, depth=1, heads=3)
    config.train.total_steps = 1
    given = [(name.replace('__', '.'), str(value)) for name, value in changes.items()]
    run = experiment.from_config(configs.override(config, experiment.Experiment, given))
    objective = assembly.make_objective(run, fields=fields)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), FIRST)
    rng = np.random.default_rng(0)
    return objective, jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes)


def mask_by_hand():
    """int(0.9 * 12) = 10 of 12 hidden, those of the least noise."""
    mask = np.zeros((3, 12), bool)
    for image, key in enumerate(keys.named(BATCH['keys'], 'mask')):
        mask[image, np.argsort(jax.random.uniform(key, (12,)))[:10]] = True
    return mask


def prediction_by_hand(objective, variables, mask):
    """Visible patches of the first image and all of the second through one encoder, then both
    through the decoder.
    """
    mean, std = np.array(objective.inputs.mean), np.array(objective.inputs.std)
    visible = np.array([np.flatnonzero(~row) for row in mask])
    params = variables['params']

    @jax.jit
    def predict(first, second):
        encoder = {'params': params['encoder']}
        # Which blocks are dropped is drawn for each of the two.
        draws = keys.named(BATCH['keys'], 'drop_path')
        own = keys.named(draws, 'second')
        first = objective.encoder.apply(encoder, first, visible_ids=visible, drop_path_keys=draws)
        second = objective.encoder.apply(encoder, second, drop_path_keys=own)
        return objective.decoder.apply(
            {'params': params['decoder']},
            first.tokens,
            visible_ids=visible,
            grid=(4, 3),
            features=192,
            memory=second.tokens,
        )

    return np.float64(predict((FIRST - mean) / std, (SECOND - mean) / std))


def target_by_hand(objective):
    images = (np.float64(FIRST) - objective.inputs.mean) / objective.inputs.std
    target = np.zeros((3, 12, 192))
    for image in range(3):
        for token in range(12):
            row, column = (8 * x for x in divmod(token, 3))
            patch = images[image, row : row + 8, column : column + 8].reshape(-1)
            target[image, token] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    return target


def loss_of(objective, variables, key):
    return float(jax.jit(objective.loss)(variables, BATCH, key, 0)[0])


@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_the_loss(drop_path):
    objective, variables = prepare(model__drop_path=drop_path)
    mask = mask_by_hand()
    np.testing.assert_array_equal(objective.mask(variables, BATCH, 0), mask)
    prediction, target = prediction_by_hand(objective, variables, mask), target_by_hand(objective)
    losses = [
        np.mean((prediction[image, token] - target[image, token]) ** 2)
        for image in range(3)
        for token in range(12)
        if mask[image, token]
    ]
    assert len(losses) == 3 * 10
    found = loss_of(objective, variables, jax.random.key(3))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


@pytest.mark.slow
def test_morphed_on_group_means_of_the_first_images_patches():
    changes = {'schedule': 'constant', 'num_merged': 4, 'num_steps': 2}
    objective, variables = prepare(**{f'objective__morphing__{k}': v for k, v in changes.items()})
    mask, key = mask_by_hand(), jax.random.key(3)
    prediction, target = prediction_by_hand(objective, variables, mask), target_by_hand(objective)
    draw = jax.random.split(key, 1)[0]
    groups = np.asarray(objective.morphing.groups(draw, np.float32(target)))
    assert all(len(np.unique(row)) == 8 for row in groups)
    losses = []
    for image in range(3):
        for token in np.flatnonzero(mask[image]):
            members = groups[image] == groups[image, token]
            p, t = (x[image][members].mean(axis=0) for x in (prediction, target))
            losses.append(np.mean((p - t) ** 2))
    np.testing.assert_allclose(loss_of(objective, variables, key), np.mean(losses), rtol=1e-5)


def test_a_prediction_knows_the_second_image_and_of_the_first_what_is_visible():
    objective, variables = prepare()
    mask = mask_by_hand()
    hidden = mask.reshape(3, 4, 3).repeat(8, axis=1).repeat(8, axis=2)[..., None]
    predict = jax.jit(objective.predict)
    found = predict(variables, BATCH, mask)
    other = {**BATCH, 'images': np.where(hidden, 0.5, FIRST)}
    np.testing.assert_array_equal(predict(variables, other, mask), found)
    for changed in ({'images': np.where(hidden, FIRST, 0.5)}, {'second': SECOND[::-1]}):
        moved = predict(variables, {**BATCH, **changed}, mask)
        assert (np.abs(moved - found)[[0, 2]].max(axis=(1, 2)) > 1e-3).all()


def test_pictures_show_the_second_view():
    objective, variables = prepare()
    sheets = jax.jit(objective.pictures)(variables, BATCH, jax.random.key(3), 0)
    hidden, second, predicted, shown, composite = sheets['reconstruction']
    assert isinstance(hidden, panels.Mask) and second.title == 'second view'
    np.testing.assert_array_equal(second.values, SECOND)
    assert predicted.values.shape == shown.values.shape == FIRST.shape
    assert composite.mask is not None


def test_the_views_of_image_pairs_from_a_folder(tmp_path):
    """Each view is of its own file, with a window and colours of its own."""
    ramp = np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None] * np.ones((40, 1, 3), np.uint8)
    for stem in 'ab':
        cv2.imwrite(str(tmp_path / f'{stem}_1.png'), ramp)
        cv2.imwrite(str(tmp_path / f'{stem}_2.png'), 255 - ramp)
    crop = Crop(mode='simple', resize=40 / 32)
    config = DataConfig(
        source=Folder(str(tmp_path), pairs=True), image_size=(32, 32), batch_size=2, crop=crop
    )
    source = data.make_source(config, split='train')
    objective, _ = prepare(fields=source.fields)
    views = objective.views(config)
    assert views == {'images': config.view(), 'second': config.view(of='other')}
    spec = data.batch_spec(config, views, source.fields)
    assert set(spec) == {'images', 'second'}
    batches = data.train_batches(source, config, views=views, seed=0)
    lefts = []
    for _ in range(4):
        batch = next(batches)
        for first, second in zip(batch['images'], batch['second'], strict=True):
            # Where on the ramp the first column lies, in pixels.
            lefts.append(
                [float(first[0, 0, 0]) * 39 / 255, (255 - float(second[0, 0, 0])) * 39 / 255]
            )
            assert (np.diff(first[0, :, 0].astype(int)) > 0).all()
            assert (np.diff(second[0, :, 0].astype(int)) < 0).all()
    lefts = np.round(lefts)
    assert lefts.min() >= 0 and lefts.max() <= 8
    assert (lefts[:, 0] != lefts[:, 1]).any() and len(np.unique(lefts[:, 0])) > 2


def test_two_crops_of_one_image_stand_for_a_pair():
    objective, _ = prepare(fields=image_fields(), objective__pair='image')
    config = DataConfig()
    views = objective.views(config)
    assert views == {'images': config.view(), 'second': config.view()}


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'data__flip': 0.5}, 'config.data.flip = 0.5: one of two views .* set it to 0'),
        ({'objective__pair': 'left'}, "the view 'second' .* needs the image 'left'"),
        ({'fields': image_fields(10)}, "the view 'second' .* needs the image 'other'"),
        ({'objective__masking__ratio': 0.05}, 'of 12 patches 12 would stay visible'),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        prepare(**changes)


def test_the_papers_recipe():
    run = experiment.from_config(configs.load(str(CONFIGS / 'croco.py')))
    objective = assembly.make_objective(run, fields=PAIRS)
    assert 196 - objective.masking.count((14, 14)) == 20
    crop = objective.views(run.data)['second'].crop
    assert crop.mode == 'simple' and round(crop.resize * 224) == 256
    clock = assembly.make_clock(run, 256 * 1000)
    schedule = make_schedule(run.optimizer, clock)
    for epoch in (40, 200, 400):
        expected = 1.5e-4 * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / (800 - 40)))
        np.testing.assert_allclose(schedule(1000 * epoch), expected, rtol=1e-4)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    assert set(params) == {'encoder', 'decoder'} and 'class_token' not in params['encoder']
    assert params['decoder']['predict']['kernel'].shape == (512, 768)
