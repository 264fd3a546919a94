"""ConMIM against a plain NumPy loop: contrast of hidden patches with all patches of their image."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, DataConfig, batch_spec, image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

CONFIG = Path(__file__).parents[2] / 'configs' / 'conmim.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {
    'images': IMAGES,
    'second': jax.random.uniform(jax.random.key(6), IMAGES.shape),
    'keys': keys.per_example(jax.random.key(5), 3),
}
KEY = jax.random.key(4)
N = 16
MORPHED = {'schedule': 'constant', 'num_merged': 8, 'num_steps': 2}


def prepare(*, model=None, **changes):
    """An objective and its variables: the average is that of another network."""
    config = experiment.default_config('conmim')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, mask_token=True)
    config.model.update(model or {})
    config.objective.update(hidden=8, projection=6)
    config.objective.update(changes)
    config.train.total_steps = 1
    config.train.ema.decay = 0.9
    run = experiment.from_config(config)
    objective = assembly.make_objective(run, fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)

    def drawn():
        # Scales and biases too: at their first values they would hide mistakes.
        return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)

    return objective, {'params': drawn(), 'ema': run.train.ema.of(drawn())}


@pytest.fixture(scope='module')
def prepared():
    return prepare()


def mask_by_hand():
    """Three of the four cells of 2x2 patches."""
    mask = np.zeros((3, N), bool)
    for image, key in enumerate(keys.named(BATCH['keys'], 'mask')):
        for cell in np.argsort(np.asarray(jax.random.uniform(key, (4,))))[:3]:
            row, column = (2 * x for x in divmod(int(cell), 2))
            for patch in (0, 1, 4, 5):
                mask[image, 4 * row + column + patch] = True
    return mask


def projected(params, encoded):
    """Three layers without biases, a batch norm behind each; the class tokens are in its batch."""
    params = jax.tree.map(np.float64, params)
    assert [set(params[f'fc{i}']) for i in (1, 2, 3)] == [{'kernel'}] * 3
    assert set(params) == {'fc1', 'norm1', 'fc2', 'norm2', 'fc3'}
    x = np.concatenate([encoded.class_token[:, None], encoded.tokens], axis=1)
    x = np.float64(x).reshape(3 * (1 + N), -1)
    for i in (1, 2, 3):
        x = x @ params[f'fc{i}']['kernel']
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        if i < 3:
            norm = params[f'norm{i}']
            x = np.maximum(x * norm['scale'] + norm['bias'], 0)
    return x.reshape(3, 1 + N, -1)[:, 1:]


@pytest.fixture(scope='module')
def by_hand(prepared):
    """Prediction and target, [3,N,P]."""
    objective, variables = prepared
    student, average = variables['params'], variables['ema']
    encode = jax.jit(objective.encode)
    seen = encode(student, IMAGES, mask=jnp.asarray(mask_by_hand()))
    whole = encode(average, BATCH['second'])
    return projected(student['projector'], seen), projected(average['projector'], whole)


def loss_by_hand(prediction, target):
    losses = []
    for image, token in zip(*np.nonzero(mask_by_hand()), strict=True):
        p = prediction[image, token]
        cosines = [p @ t / np.linalg.norm(p) / np.linalg.norm(t) for t in target[image]]
        chances = np.exp(np.array(cosines) / 0.1)
        losses.append(-np.log(chances[token] / chances.sum()))
    assert len(losses) == 3 * 12
    return np.mean(losses)


def test_the_loss(prepared, by_hand):
    objective, variables = prepared
    loss, _, state = jax.jit(objective.loss)(variables, BATCH, KEY, 0)
    np.testing.assert_allclose(loss, loss_by_hand(*by_hand), rtol=1e-4)
    assert state == {}
    np.testing.assert_array_equal(objective.mask(variables, BATCH, 0), mask_by_hand())


@pytest.mark.slow
def test_the_pictures_show_what_is_taken_to_be_hidden(prepared, by_hand):
    objective, variables = prepared
    sheet = jax.jit(objective.pictures)(variables, BATCH, KEY, 0)['matches']
    hidden, _, matched, likely = sheet
    p, t = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in by_hand)
    nearest = np.einsum('bnd,bmd->bnm', p, t).argmax(axis=-1)
    for image in range(3):
        for token in range(N):
            (row, column), (y, x) = divmod(token, 4), divmod(int(nearest[image, token]), 4)
            shown = matched.values[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            taken = BATCH['second'][image, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            np.testing.assert_array_equal(shown, taken)
    np.testing.assert_array_equal(hidden.values, mask_by_hand())
    chances = np.asarray(likely.values)
    losses = -np.log(chances[mask_by_hand()])
    np.testing.assert_allclose(losses.mean(), loss_by_hand(*by_hand), rtol=1e-4)
    assert (chances[~mask_by_hand()] == 0).all()
    own = [nearest[image, token] == token for image, token in np.argwhere(mask_by_hand())]
    found = jax.jit(objective.health)(variables, BATCH, KEY, 0)
    np.testing.assert_allclose(found['matched_share'], np.mean(own), rtol=1e-6)


@pytest.mark.slow
def test_morphed_a_group_has_one_target_that_counts_as_often_as_it_has_tokens(prepared, by_hand):
    variables = prepared[1]
    morphed, _ = prepare(morphing=MORPHED)
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

    loss, _, _ = jax.jit(morphed.loss)(variables, BATCH, KEY, 0)
    found = loss_by_hand(grouped(prediction), grouped(target))
    np.testing.assert_allclose(loss, found, rtol=1e-4)
    assert 'groups' in jax.eval_shape(morphed.pictures, variables, BATCH, KEY, 0)


@pytest.mark.slow
def test_the_average_gets_no_gradient_and_every_part_of_the_network_does(prepared):
    objective, variables = prepared
    gradient = jax.jit(jax.grad(lambda v: objective.loss(v, BATCH, KEY, 0)[0]))(variables)

    def size(tree):
        return max(np.abs(x).max() for x in jax.tree.leaves(tree))

    assert size(gradient['ema']) == 0
    assert min(size(tree) for tree in gradient['params'].values()) > 1e-4
    assert set(gradient['params']) == {'encoder', 'projector'}


def test_the_average_sees_the_students_crop_in_the_papers_colours(prepared):
    objective, _ = prepared
    config = DataConfig(image_size=(32, 32), flip=0.5)
    views = objective.views(config)
    assert views['images'] == config.view() and views['second'].like == 'images'
    assert views['second'].colors == Colors(
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        probability=0.8,
        grey=0.2,
        blur=0.1,
        blur_sigma=(0.1, 2.0),
        solarize=0.2,
    )
    assert set(batch_spec(config, views, objective.inputs.fields)) == {'images', 'labels'}


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate, decay = make_schedule(run.optimizer, clock), run.train.ema.decays(clock)
    assert clock.total_steps == 800 * 625 and run.data.batch_size == 2048
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    assert warmup == 10 * 625
    np.testing.assert_allclose([rate(0), rate(warmup)], [0, 7.5e-4], rtol=1e-6)
    np.testing.assert_allclose(rate(clock.total_steps), 1e-5, rtol=1e-4)
    assert (run.optimizer.beta2, run.optimizer.weight_decay) == (0.98, 0.05)
    assert run.optimizer.clip_norm == 1.0
    np.testing.assert_allclose([decay(0), decay(clock.total_steps)], [0.996, 1.0])
    assert run.objective.masking.count((14, 14)) == 4 * 37
    assert (run.objective.hidden, run.objective.projection) == (4096, 256)
    assert run.objective.contrast.temperature == 0.1
    view = run.objective.views(run.data)['images']
    assert view.colors == Colors() and view.crop.scale == (0.08, 1.0) and view.flip == 0.5
    model = run.model
    assert (model.position, model.relative_position, model.qkv_bias) == ('none', 'shared', 'qv')
    assert (model.layer_scale, model.drop_path, model.initialization) == (0.1, 0.0, 'beit')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'contrast': {'temperature': 0.0}}, 'temperature = 0.0: must be above 0'),
        ({'hidden': 0}, 'hidden = 0'),
        ({'model': {'mask_token': False}}, 'mask_token = False, but this objective needs it'),
        ({'masking': {'cell': (3, 2)}}, 'does not divide into such cells'),
    ],
)
def test_impossible_options_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(**changes)
    assert '\n' not in str(error.value)
