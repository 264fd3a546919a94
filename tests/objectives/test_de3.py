"""De3 against a plain computation: noise, a frozen network, its pixels put back, a classifier."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys, work_directory
from mim_jax import config as configs
from mim_jax.checkpoints import Checkpoints
from mim_jax.data import image_fields
from mim_jax.data.embedded import EmbeddedScenes
from mim_jax.errors import UserError
from mim_jax.objectives.classification import Classification
from mim_jax.optimizers import make_schedule
from mim_jax.program import Program

CONFIG = Path(__file__).parents[2] / 'configs' / 'de3.py'
MODEL = dict(patch_size=(8, 8), width=16, depth=1, heads=2)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {
    'images': IMAGES,
    'keys': keys.per_example(jax.random.key(3), 3),
    'labels': np.array([1, 5, 9]),
}
KEY = jax.random.key(4)


def configured(**options):
    config = experiment.default_config('de3')
    config.data.image_size = (32, 32)
    config.model.update(MODEL)
    config.objective.denoiser.model.update(MODEL)
    config.objective.denoiser.decoder.update(width=8, depth=1, heads=2)
    config.train.total_steps = 1
    given = [(f'objective.{name}', str(value)) for name, value in options.items()]
    return configs.override(config, experiment.Experiment, given)


def make(**options):
    run = experiment.from_config(configured(**options))
    return assembly.make_objective(run, fields=image_fields(10))


@pytest.fixture(scope='module')
def prepared():
    objective = make()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)
    return objective, draw


def noisy_by_hand(own, low, high):
    images = np.float64(IMAGES)
    for image, key in enumerate(keys.named(own, 'defence')):
        for_sigma, _, for_noise = jax.random.split(key, 3)
        sigma = low + (high - low) * float(jax.random.uniform(for_sigma))
        images[image] += sigma / 255 * np.float64(jax.random.normal(for_noise, (32, 32, 3)))
    return images


def restored_by_hand(objective, variables, noisy):
    """The network's patches, with mean and deviation of those that were given without noise."""
    network = objective.denoiser.network(objective.inputs)
    predict = jax.jit(network.predict)
    prediction = np.float64(predict(variables['teacher'], jnp.asarray(noisy, jnp.float32)))
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    given = (np.float64(IMAGES) - mean) / std
    restored = np.zeros((3, 32, 32, 3))
    for image, row, column in np.ndindex(3, 4, 4):
        where = image, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        patch = given[where]
        deviation = np.sqrt(patch.var(ddof=1) + 1e-6)
        values = prediction[image, 4 * row + column].reshape(8, 8, 3) * deviation + patch.mean()
        restored[where] = values * std + mean
    return np.clip(restored, 0, 1)


def test_what_is_classified_is_restored_from_noise(prepared):
    objective, variables = prepared
    own = keys.per_example(jax.random.key(0), 3)
    noisy = noisy_by_hand(own, 70, 70)
    expected = restored_by_hand(objective, variables, noisy)
    found = jax.jit(lambda v: objective.defended(v, IMAGES, own, noise=objective.test_noise))
    stages = found(variables)
    np.testing.assert_allclose(stages[0], np.clip(noisy, 0, 1), atol=1e-5)
    np.testing.assert_allclose(stages[1], expected, atol=1e-4)
    assert np.abs(expected - np.float64(IMAGES)).max() > 0.1
    logits = jax.jit(objective.logits)(variables, IMAGES)
    plain = jax.jit(lambda x: Classification.logits(objective, variables, x))
    np.testing.assert_allclose(logits, plain(expected), atol=1e-3)


@pytest.mark.slow
def test_training_images_get_less_noise_drawn_for_each(prepared):
    objective, variables = prepared
    own = BATCH['keys']
    expected = restored_by_hand(objective, variables, noisy_by_hand(own, 0, 30))
    given = jax.jit(objective.given)(variables, IMAGES, own)
    np.testing.assert_allclose(given, expected, atol=1e-4)
    loss = jax.jit(objective.loss)(variables, BATCH, KEY, 0)[0]
    plain = Classification(encoder=objective.encoder, inputs=objective.inputs)
    same = jax.jit(plain.loss)(variables, {**BATCH, 'images': given}, KEY, 0)[0]
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    # An attacker's gradient finds its way through the defence, the frozen network gets none.
    pull = jax.jit(jax.grad(lambda x: objective.logits(variables, x)[:, 0].sum()))(IMAGES)
    assert np.abs(pull).max() > 0


def test_without_a_network_only_noise_is_added_or_nothing():
    noise, none = make(defence='noise'), make(defence='none')
    own = BATCH['keys']
    stages = noise.defended({}, IMAGES, own, noise=noise.noise)
    np.testing.assert_allclose(stages[-1], np.clip(noisy_by_hand(own, 0, 30), 0, 1), atol=1e-5)
    np.testing.assert_array_equal(none.given({}, IMAGES, own), IMAGES)
    louder, open_ = noise.with_noise(140.0), noise.with_noise(0.0)
    assert louder.test_noise.sigma == (140, 140) and louder.defence == 'noise'
    assert louder.noise == noise.noise and open_.defence == 'none'
    shapes = jax.eval_shape(noise.init, jax.random.key(0), IMAGES)
    assert set(shapes) == {'params'} and noise.pretrained() == none.pretrained() == {}


@pytest.mark.slow
def test_the_network_is_that_of_a_run_of_nim(tmp_path):
    config = experiment.default_config('nim')
    config.data.update(image_size=(32, 32), batch_size=16)
    config.model.update(MODEL)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.train.total_steps = 1
    config.mesh.data = 1
    run = experiment.from_config(config)
    program = Program.make(run, epoch_examples=64, fields=EmbeddedScenes.fields)
    state = jax.jit(lambda: program.step.init(program.abstract_batch['images']))()
    work_directory.claim(tmp_path / 'run', run)
    saving = Checkpoints(tmp_path / 'run', run.checkpoint)
    saving.save(1, state, {})
    saving.close()
    weights = {'denoiser.weights': tmp_path / 'run'}
    read = make(**weights).pretrained()['teacher']
    jax.tree.map(np.testing.assert_array_equal, read, state.variables['params'])
    for options, message in (
        ({'denoiser.normalize': 'false'}, 'make them equal'),
        ({'denoiser.model.depth': 2}, 'depth is 1 there, 2 in the config'),
        ({'denoiser.decoder.width': 16}, 'denoiser.weights'),
    ):
        with pytest.raises(UserError, match=message) as error:
            make(**weights, **options).pretrained()
        assert '\n' not in str(error.value)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match='denoiser.weights is not set: it names the work directory'):
        make().pretrained()
    with pytest.raises(UserError, match='^config.objective.denoiser.weights: '):
        make(**{'denoiser.weights': tmp_path}).pretrained()


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    assert (run.data.batch_size, run.train.total_epochs) == (1024, 100)
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    np.testing.assert_allclose(warmup / clock.total_steps, 5 / 100, rtol=1e-3)
    np.testing.assert_allclose(rate(warmup), 4e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(clock.total_steps), 1e-6, rtol=1e-3)
    optimizer, objective = run.optimizer, run.objective
    assert (optimizer.layer_decay, optimizer.weight_decay, optimizer.beta2) == (0.75, 0.05, 0.999)
    assert (objective.mixup, objective.cutmix, objective.label_smoothing) == (0.8, 1.0, 0.1)
    assert (objective.erasing, objective.pooling, run.model.drop_path) == (0.25, 'mean', 0.1)
    assert objective.noise.sigma == (0, 30) and objective.test_noise.sigma == (70, 70)
    assert objective.denoiser.weights == 'runs/nim'
    # The classifier can start from the encoder of the network that defends it.
    for name in ('patch_size', 'width', 'depth', 'heads', 'position', 'relative_position'):
        assert getattr(run.model, name) == getattr(objective.denoiser.model, name)
