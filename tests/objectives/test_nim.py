"""NIM against a plain NumPy loop: noise of drawn deviations, all patches, clean ones as targets."""

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

CONFIG = Path(__file__).parents[2] / 'configs' / 'nim.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(3), 3)}
KEY = jax.random.key(4)
N = 16


def make(**options):
    config = experiment.default_config('nim')
    config.data.image_size = (32, 32)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.train.total_steps = 1
    config.train.ema.decay = 0.9
    given = [(f'objective.{name}', str(value)) for name, value in options.items()]
    configs.override(config, experiment.Experiment, given)
    return assembly.make_objective(experiment.from_config(config), fields=image_fields(10))


@pytest.fixture(scope='module')
def prepared():
    objective = make()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)
    return objective, {'params': params}


def corrupted_by_hand():
    images = np.float64(IMAGES)
    for image, key in enumerate(keys.named(BATCH['keys'], 'corruption')):
        for_sigma, _, for_noise = jax.random.split(key, 3)
        sigma = 3 * jax.random.gamma(for_sigma, 25.0)
        assert 30 < sigma < 150
        images[image] += float(sigma) / 255 * np.float64(jax.random.normal(for_noise, (32, 32, 3)))
    return images


def target_by_hand(inputs):
    """Patches [3,N,192] of the clean images, normalised."""
    images = (np.float64(IMAGES) - np.array(inputs.mean)) / np.array(inputs.std)
    target = np.zeros((3, N, 192))
    for image in range(3):
        for token in range(N):
            row, column = (8 * x for x in divmod(token, 4))
            patch = images[image, row : row + 8, column : column + 8].reshape(-1)
            target[image, token] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    return target


@pytest.fixture(scope='module')
def by_hand(prepared):
    """Prediction and target."""
    objective, variables = prepared
    noisy = jnp.asarray(corrupted_by_hand(), jnp.float32)
    prediction = jax.jit(objective.predict)(variables['params'], noisy)
    return np.float64(prediction), target_by_hand(objective.inputs)


def mean_square(prediction, target):
    return np.mean([((p - t) ** 2).mean() for p, t in zip(prediction, target, strict=True)])


def test_the_loss_is_over_all_patches(prepared, by_hand):
    objective, variables = prepared
    loss, metrics, state = jax.jit(objective.loss)(variables, BATCH, KEY, 0)
    np.testing.assert_allclose(loss, mean_square(*by_hand), rtol=1e-4)
    assert metrics == state == {}
    # Nothing is hidden: there is neither a mask nor a token for it.
    assert objective.mask(variables, BATCH, 0) is None
    assert 'mask_token' not in variables['params']['decoder']


@pytest.mark.slow
def test_morphed(prepared, by_hand):
    options = {'schedule': 'constant', 'num_merged': 8, 'num_steps': 2}
    morphed = make(**{f'morphing.{name}': value for name, value in options.items()})
    prediction, target = by_hand
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

    loss = jax.jit(morphed.loss)(prepared[1], BATCH, KEY, 0)[0]
    np.testing.assert_allclose(loss, mean_square(grouped(prediction), grouped(target)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('target', ['hog', 'ema'])
@pytest.mark.parametrize('corruption', ['noise', 'low_resolution'])
def test_any_target_is_predicted_from_any_corruption(target, corruption):
    objective = make(**{'target.name': target, 'corruption.name': corruption})
    variables = objective.init(jax.random.key(0), IMAGES)
    variables['ema'] = variables['params']
    loss = jax.jit(objective.loss)(variables, BATCH, KEY, 0)[0]
    assert np.isfinite(loss) and loss > 0
    sheets = jax.eval_shape(objective.pictures, variables, BATCH, KEY, 0)
    assert list(sheets) == ['corrupted']


def test_pictures_have_what_is_given_and_what_is_made_of_it(prepared):
    objective, variables = prepared
    sheets = jax.eval_shape(objective.pictures, variables, BATCH, KEY, 0)
    titles = [panel.title for panel in sheets['reconstruction']]
    assert titles[0] == 'corrupted' and titles[1] == 'prediction (normalised)' and len(titles) == 3


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    assert (run.data.batch_size, run.train.total_epochs) == (4096, 800)
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    np.testing.assert_allclose(rate(warmup), 1.5e-4 * 4096 / 256, rtol=1e-5)
    assert run.objective.corruption.gamma == (25.0, 3.0)
    assert run.objective.corruption.grey_share == 0 and run.objective.target.normalize
    decoder = run.objective.decoder
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 8, 16)
    view = run.objective.views(run.data)['images']
    assert view.colors == Colors() and view.crop.scale == (0.2, 1.0) and view.flip == 0.5


@pytest.mark.parametrize(
    'options, message',
    [
        ({'corruption.gamma': '25'}, r'gamma = \(25.0,\): it must be \(shape, scale\), or None'),
        ({'corruption.gamma': '25,0'}, 'gamma'),
        ({'corruption.sigma': '30,0'}, 'sigma'),
        (
            {'corruption.name': 'blur', 'corruption.sizes': 99},
            'a kernel of 99 is too wide for images of 32x32',
        ),
    ],
)
def test_impossible_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as error:
        make(**options)
    assert '\n' not in str(error.value)
