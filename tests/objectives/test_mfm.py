"""MFM against NumPy's FFT and plain loops."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax.config import load, override
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

ROOT = Path(__file__).parents[2]

IMAGES = jax.random.uniform(jax.random.key(1), (6, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(3), 6)}
KEY = jax.random.key(4)


def make(**options):
    config = experiment.default_config('mfm')
    config.data.image_size = (32, 32)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.train.total_steps = 1
    options = {'corruption.radius': 6.0, **options}
    if 'corruption.name' in options:
        del options['corruption.radius']
    given = [(f'objective.{name}', str(value)) for name, value in options.items()]
    override(config, experiment.Experiment, given)
    run = experiment.from_config(config)
    return assembly.make_objective(run, fields=image_fields(10))


def init(objective):
    return objective.init(jax.random.key(2), IMAGES)


def corrupted_by_hand(objective):
    """Images as the network is given them, and what is removed [B,H,W], the mean in the middle."""
    images, removed = np.zeros((6, 32, 32, 3)), np.zeros((6, 32, 32), bool)
    for image, key in enumerate(keys.named(BATCH['keys'], 'corruption')):
        low_kept = jax.random.bernoulli(key, 0.5)
        for row in range(32):
            for column in range(32):
                high = (row - 16) ** 2 + (column - 16) ** 2 >= 6**2
                removed[image, row, column] = high == low_kept
        for channel in range(3):
            spectrum = np.fft.fftshift(np.fft.fft2(np.float64(IMAGES[image, ..., channel])))
            spectrum[removed[image]] = 0
            images[image, ..., channel] = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    return np.clip(images, 0, 1), removed


def normalised(objective, images):
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    return (np.float64(images) - mean) / std


def prediction_by_hand(objective, variables, images):
    """The linear layer's pixels [B,H,W,C] of the encoder's tokens."""
    params = variables['params']
    seen = np.float32(normalised(objective, images))
    tokens = np.float64(objective.encoder.apply({'params': params['encoder']}, seen).tokens)
    layer = jax.tree.map(np.float64, params['head']['linear'])
    patches = tokens @ layer['kernel'] + layer['bias']
    shown = np.zeros((6, 32, 32, 3))
    for token in range(16):
        row, column = (8 * x for x in divmod(token, 4))
        shown[:, row : row + 8, column : column + 8] = patches[:, token].reshape(6, 8, 8, 3)
    return shown


@pytest.mark.parametrize(('loss_on', 'gamma'), [('removed', 1.0), ('removed', 2.0), ('all', 1.0)])
def test_the_loss(loss_on, gamma):
    objective = make(loss_on=loss_on, **{'distance.gamma': gamma})
    variables = init(objective)
    images, removed = corrupted_by_hand(objective)
    assert 0 < removed[:, 16, 16].sum() < 6  # both kinds are there
    prediction = prediction_by_hand(objective, variables, images)
    target = normalised(objective, IMAGES)
    total, count = 0.0, 0
    for image in range(6):
        for channel in range(3):
            both = (x[image, ..., channel] for x in (prediction, target))
            p, t = (np.fft.fftshift(np.fft.fft2(x, norm='ortho')) for x in both)
            for row in range(32):
                for column in range(32):
                    if loss_on == 'all' or removed[image, row, column]:
                        d = p[row, column] - t[row, column]
                        total += np.sqrt(d.real**2 + d.imag**2 + 1e-12) ** gamma
                        count += 1
    loss, metrics, state = objective.loss(variables, BATCH, KEY, 0)
    np.testing.assert_allclose(loss.mean, total / count, rtol=1e-4)
    np.testing.assert_allclose(metrics['counted_share'], count / 6 / 32 / 32 / 3, rtol=1e-5)
    assert state == {}


def test_parts_of_a_batch_add_up():
    objective = make()
    variables = init(objective)
    whole = objective.loss(variables, BATCH, KEY, 0)[0]
    parts = []
    for i in range(6):
        one = {name: x[i : i + 1] for name, x in BATCH.items()}
        parts.append(objective.loss(variables, one, KEY, 0)[0])
    total, weight = sum(x.sum for x in parts), sum(x.weight for x in parts)
    np.testing.assert_allclose(total / weight, whole.mean, rtol=1e-5)
    assert np.std([float(x.weight) for x in parts]) > 0


@pytest.mark.parametrize('name', ['low_resolution', 'blur', 'noise'])
def test_other_corruptions_are_compared_at_every_frequency(name):
    options = {'corruption.sizes': (3, 5)} if name == 'blur' else {}
    objective = make(**{'corruption.name': name, **options})
    variables = init(objective)
    corrupted = objective.corrupt(BATCH)
    assert corrupted.removed is None
    prediction = prediction_by_hand(objective, variables, corrupted.images)
    difference = prediction - normalised(objective, IMAGES)
    expected = np.abs(np.fft.fft2(difference, axes=(1, 2), norm='ortho')).mean()
    loss = objective.loss(variables, BATCH, KEY, 0)[0]
    np.testing.assert_allclose(loss.mean, expected, rtol=1e-4)


def test_the_spectra_of_the_batch_are_one_where_that_is_asked_for():
    options = {'distance.average': True, 'loss_on': 'all'}
    objective = make(**options)
    variables = init(objective)
    images, _ = corrupted_by_hand(objective)
    difference = prediction_by_hand(objective, variables, images) - normalised(objective, IMAGES)
    expected = np.abs(np.fft.fft2(difference, axes=(1, 2), norm='ortho').mean(axis=0)).mean()
    loss = objective.loss(variables, BATCH, KEY, 0)[0]
    np.testing.assert_allclose(loss.mean, expected, rtol=1e-4)
    assert objective.needs_whole_batch and not make().needs_whole_batch


def test_focal_weights_lower_the_loss_and_parts_change_it():
    losses = {}
    for name, options in {
        'plain': {},
        'focal': {'distance.focal': 1.0},
        'parts': {'distance.parts': 2},
    }.items():
        objective = make(loss_on='all', **options)
        losses[name] = float(objective.loss(init(objective), BATCH, KEY, 0)[0].mean)
    assert losses['focal'] < 0.9 * losses['plain']
    assert abs(losses['parts'] - losses['plain']) > 1e-3


def test_a_decoder_may_stand_before_the_pixels():
    decoder = {'decoder.depth': 1, 'decoder.width': 8, 'decoder.heads': 2}
    objective = make(**decoder)
    variables = init(objective)
    assert set(variables['params']) == {'encoder', 'decoder'}
    assert set(variables['params']['decoder']) == {'embed', 'blocks', 'norm', 'predict'}

    def loss(params):
        return objective.loss({'params': params}, BATCH, KEY, 0)[0].mean

    gradient = jax.jit(jax.grad(loss))(variables['params'])
    largest = jax.tree.map(lambda x: float(np.abs(x).max()), gradient)
    assert min(jax.tree.leaves(largest['decoder']['predict'])) > 1e-5
    assert largest['decoder']['embed']['kernel'] > 1e-7


@pytest.mark.parametrize(
    ('scale', 'radius'), [('vitb', 16), ('cifar10', 2.2857), ('embedded', 3.4286)]
)
def test_the_recipe_of_the_paper(scale, radius):
    run = experiment.from_config(load(f'{ROOT}/configs/mfm.py:{scale}'))
    np.testing.assert_allclose(run.objective.corruption.radius, radius, rtol=1e-4)
    assert run.optimizer.clip_norm == 3.0 and run.model.position == 'learned'
    if scale == 'vitb':
        clock = assembly.make_clock(run, 1_281_167)
        rates = make_schedule(run.optimizer, clock)
        steps = [0, math.ceil(20 * (clock.epoch_examples / clock.batch_size)), clock.total_steps]
        np.testing.assert_allclose([rates(i) for i in steps], [1e-6, 1.2e-3, 1e-5], rtol=1e-3)


def test_no_patch_is_hidden_and_features_are_those_of_the_clean_image():
    objective = make()
    variables = init(objective)
    assert objective.mask(variables, BATCH, 0) is None
    found = objective.features(variables, IMAGES).tokens
    clean = np.float32(normalised(objective, IMAGES))
    expected = objective.encoder.apply({'params': variables['params']['encoder']}, clean).tokens
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pictures_show_the_image_with_its_own_kept_frequencies():
    objective = make()
    variables = init(objective)
    sheets = objective.pictures(variables, BATCH, KEY, 0)
    assert [len(panels) for panels in sheets.values()] == [2, 3]
    images, removed = corrupted_by_hand(objective)
    corrupted, restored = (panel.values for panel in sheets['reconstruction'])
    np.testing.assert_allclose(corrupted, images, atol=1e-5)
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    prediction = prediction_by_hand(objective, variables, images) * std + mean
    gone = np.fft.ifftshift(removed, axes=(1, 2))[..., None]
    both = (np.fft.fft2(np.float64(x), axes=(1, 2)) for x in (prediction, IMAGES))
    expected = np.fft.ifft2(np.where(gone, *both), axes=(1, 2)).real
    np.testing.assert_allclose(restored, np.clip(expected, 0, 1), atol=1e-4)
    spectrum, left, _ = (np.asarray(panel.values) for panel in sheets['spectra'])
    assert spectrum.shape == (6, 32, 32, 1) and (left[removed] == 0).all()
    np.testing.assert_allclose(left[~removed], spectrum[~removed], atol=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'corruption.radius': 16.0}, r'corruption\.radius = 16.0: images of 32x32'),
        ({'distance.parts': 3, 'loss_on': 'all'}, r'distance\.parts = 3: images of 32x32'),
        ({'distance.parts': 2}, 'are those of whole images; set objective.loss_on to all'),
        ({'loss_on': 'kept'}, 'loss_on'),
        ({'corruption.name': 'fog'}, 'corruption'),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
