"""LUT against a plain NumPy loop: two views, one permutation, MAE on one, both cross pairs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, data, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, Crop, DataConfig, augment, batch_spec, image_fields
from mim_jax.data.embedded import EmbeddedScenes
from mim_jax.errors import UserError
from mim_jax.objectives.lut import LUT
from mim_jax.optimizers import make_schedule
from mim_jax.program import Program

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'lut.py'
IMAGES = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))
BATCH = {
    'images': IMAGES,
    'second': jax.random.uniform(jax.random.key(6), IMAGES.shape),
    'keys': keys.per_example(jax.random.key(5), 4),
}
KEY = jax.random.key(4)
N, K = 16, 4  # patches of an image; a quarter of them


def tiny(**changes):
    config = experiment.default_config('lut')
    config.data.update(image_size=(32, 32), batch_size=4)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.objective.hidden = 8
    config.objective.update(changes)
    config.train.total_steps = 1
    config.train.ema.update(decay=0.9, parts=('encoder', 'projector'))
    return config


def prepare(**changes):
    """An objective and its variables: the average is that of another network."""
    run = experiment.from_config(tiny(**changes))
    objective = assembly.make_objective(run, fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)

    def drawn():
        # Scales and biases too: at their first values they would hide mistakes.
        return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), shapes)

    return objective, {'params': drawn(), 'ema': run.train.ema.of(drawn())}


@pytest.fixture(scope='module')
def prepared():
    return prepare(reconstruction_weight=0.7, context_weight=0.3)


def loss_of(objective, variables, batch=BATCH):
    return jax.jit(objective.loss)(variables, batch, KEY, 0)


def head_by_hand(params, x):
    """Linear, batch norm over the batch, ReLU, linear; no biases."""
    assert set(params['fc1']) == set(params['fc2']) == {'kernel'}
    params = jax.tree.map(np.float64, params)
    x = x @ params['fc1']['kernel']
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    x = x * params['norm']['scale'] + params['norm']['bias']
    return np.maximum(x, 0) @ params['fc2']['kernel']


def places_by_hand():
    """What either view shows, [4, K] each: two stretches of one permutation per image."""
    first, second = [], []
    for key in keys.named(BATCH['keys'], 'mask'):
        permutation = np.argsort(np.asarray(jax.random.uniform(key, (N,))))
        first.append(permutation[:K])
        second.append(permutation[K : 2 * K])
    return np.stack(first), np.stack(second)


def patches_by_hand(inputs):
    """Normalised patches [4,N,192] of the first view."""
    images = (np.float64(IMAGES) - np.array(inputs.mean)) / np.array(inputs.std)
    patches = np.zeros((4, N, 192))
    for image in range(4):
        for token in range(N):
            row, column = (8 * x for x in divmod(token, 4))
            patch = images[image, row : row + 8, column : column + 8].reshape(-1)
            patches[image, token] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    return patches


def grouped(tokens, groups):
    """Every token of one image [N,D] replaced by the mean of its group."""
    return np.stack([tokens[groups == group].mean(axis=0) for group in groups])


def loss_by_hand(objective, variables, groups=None):
    student, teacher = variables['params'], variables['ema']
    places = places_by_hand()
    seen, whole = [], []
    for view, visible in zip((IMAGES, BATCH['second']), places, strict=True):
        seen.append(objective.encode(student, view, visible=jnp.asarray(visible)))
        whole.append(np.float64(objective.encode(teacher, view).tokens))
    prediction = np.float64(objective.decode(student, seen[0], jnp.asarray(places[0])))
    target = patches_by_hand(objective.inputs)
    if groups is not None:
        prediction, target = (
            np.stack([grouped(x, g) for x, g in zip(tokens, groups, strict=True)])
            for tokens in (prediction, target)
        )
    squares = [
        ((prediction[image, token] - target[image, token]) ** 2).mean()
        for image in range(4)
        for token in range(N)
        if token not in places[0][image]
    ]
    assert len(squares) == 4 * (N - K)
    pairs = []
    for i, j in ((0, 1), (1, 0)):
        mean = np.float64(seen[i].tokens).mean(axis=1)
        p = head_by_hand(student['predictor'], head_by_hand(student['projector'], mean))
        z = head_by_hand(teacher['projector'], whole[j].mean(axis=1))
        for image in range(4):
            cosine = p[image] @ z[image] / np.linalg.norm(p[image]) / np.linalg.norm(z[image])
            pairs.append(2 - 2 * cosine)
    return np.mean(squares), np.mean(pairs)


def test_the_loss(prepared):
    objective, variables = prepared
    loss, metrics, state = loss_of(objective, variables)
    reconstruction, context = loss_by_hand(objective, variables)
    np.testing.assert_allclose(metrics['reconstruction_loss'], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(metrics['context_loss'], context, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * reconstruction + 0.3 * context, rtol=1e-4)
    assert state == {}


@pytest.mark.slow
def test_the_reconstruction_is_morphed_and_the_alignment_is_not(prepared):
    objective, variables = prepared
    changes = {'schedule': 'constant', 'num_merged': 8, 'num_steps': 2}
    morphed, _ = prepare(morphing=changes)
    target = np.float32(patches_by_hand(objective.inputs))
    groups = np.asarray(morphed.morphing.groups(jax.random.split(KEY, 1)[0], target))
    assert all(len(np.unique(image)) == 8 for image in groups)
    reconstruction, context = loss_by_hand(morphed, variables, groups)
    loss, metrics, _ = loss_of(morphed, variables)
    np.testing.assert_allclose(metrics['reconstruction_loss'], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(metrics['context_loss'], context, rtol=1e-4)
    np.testing.assert_allclose(loss, reconstruction + 0.25 * context, rtol=1e-4)


def test_masks_are_disjoint_and_the_first_is_the_methods(prepared):
    objective, variables = prepared
    first, second = (np.asarray(mask) for mask in objective.masks(BATCH))
    np.testing.assert_array_equal(objective.mask(variables, BATCH, 0), first)
    for mask, places in zip((first, second), places_by_hand(), strict=True):
        for row, shown in zip(mask, places, strict=True):
            assert set(np.flatnonzero(~row)) == set(shown)
    assert (first | second).all() and (first & second).sum() == 4 * (N - 2 * K)


def test_the_teacher_is_the_average_on_whole_views(prepared):
    objective, variables = prepared
    _, before, _ = loss_of(objective, variables)
    nowhere = np.all(objective.masks(BATCH), axis=0).reshape(4, 4, 4)
    hidden = np.repeat(np.repeat(nowhere, 8, axis=1), 8, axis=2)[..., None]
    # Of the second view the student sees nothing there, the teacher does.
    changed = {**BATCH, 'second': jnp.where(hidden, 0.0, BATCH['second'])}
    _, after, _ = loss_of(objective, variables, changed)
    assert after['reconstruction_loss'] == before['reconstruction_loss']
    assert abs(after['context_loss'] - before['context_loss']) > 1e-4
    _, own, _ = loss_of(objective, {**variables, 'ema': variables['params']})
    assert own['reconstruction_loss'] == before['reconstruction_loss']
    assert abs(own['context_loss'] - before['context_loss']) > 1e-4


@pytest.mark.slow
def test_the_average_gets_no_gradient_and_every_part_of_the_network_does(prepared):
    objective, variables = prepared
    gradient = jax.jit(jax.grad(lambda v: objective.loss(v, BATCH, KEY, 0)[0]))(variables)

    def size(tree):
        return max(np.abs(x).max() for x in jax.tree.leaves(tree))

    assert size(gradient['ema']) == 0
    sizes = {part: size(tree) for part, tree in gradient['params'].items()}
    assert set(sizes) == {'encoder', 'decoder', 'projector', 'predictor'}
    assert min(sizes.values()) > 1e-4
    # The second view is not reconstructed: with the first weight alone it does not matter.
    alone, _ = prepare(context_weight=0.0)
    other = {**BATCH, 'second': IMAGES}
    assert loss_of(alone, variables, other)[0] == loss_of(alone, variables)[0]


def test_the_average_holds_encoder_and_projector_and_rises_along_a_cosine():
    config = tiny()
    config.mesh.data = 1
    run = experiment.from_config(config)
    program = Program.make(run, epoch_examples=64, fields=EmbeddedScenes.fields)
    assert set(program.abstract_state.variables['ema']) == {'encoder', 'projector'}
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    decay = run.train.ema.decays(clock)
    for share, expected in ((0, 0.996), (0.25, 1 - 0.004 * (1 + 0.5**0.5) / 2), (0.5, 0.998)):
        np.testing.assert_allclose(decay(share * clock.total_steps), expected, atol=1e-6)
    assert decay(clock.total_steps) == 1


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    assert (run.data.batch_size, run.train.total_epochs) == (4096, 1600)
    np.testing.assert_allclose(warmup / clock.total_steps, 40 / 1600, rtol=1e-3)
    np.testing.assert_allclose(rate(warmup), 1.5e-4 * 4096**0.5 / 4, rtol=1e-5)
    np.testing.assert_allclose([rate(0), rate(clock.total_steps)], 0, atol=1e-10)
    assert (run.optimizer.beta1, run.optimizer.beta2) == (0.9, 0.95)
    assert run.optimizer.weight_decay == 0.05 and run.optimizer.clip_norm is None
    objective = run.objective
    assert (objective.reconstruction_weight, objective.context_weight) == (1, 0.25)
    assert objective.hidden == 4096 and objective.target.normalize
    assert objective.masking.count((14, 14)) == 147
    views = objective.views(run.data)
    assert views['images'].colors == Colors()
    for view in views.values():
        crop = view.crop
        assert (crop.mode, crop.resize, crop.pad, crop.interpolation) == ('simple', 1, 4, 'bicubic')
        assert view.image_size == (224, 224) and view.flip == 0.5 and view.like is None


@pytest.mark.parametrize('size', ['vitb', 'cifar10', 'embedded'])
def test_the_second_view_has_its_own_crop_and_the_papers_colours(size):
    run = experiment.from_config(configs.load(f'{CONFIG}:{size}'))
    second = run.objective.views(run.data)['second']
    colors = second.colors
    strengths = colors.brightness, colors.contrast, colors.saturation, colors.hue
    assert strengths == (0.4, 0.4, 0.2, 0.1) and colors.probability == 0.8
    assert colors.one_of and colors.grey == colors.solarize == colors.blur > 0
    spec = batch_spec(run.data, run.objective.views(run.data), image_fields(10))
    assert spec['images'].shape == spec['second'].shape


def test_two_crops_and_exactly_one_change_of_the_colours():
    jitter_off = Colors(one_of=True, grey=1.0, solarize=1.0, blur=1.0)
    config = DataConfig(image_size=(32, 32), batch_size=32, crop=Crop(mode='simple', pad=4))
    views = LUT(second_colors=jitter_off).views(config)
    source = data.make_source(config, split='train')
    batch = next(data.train_batches(source, config, views=views, seed=0))
    shifted = (batch['images'] != batch['second']).any(axis=(1, 2, 3))
    assert shifted.sum() > 25  # 1 in 81 is the same by chance
    augmented = augment.augment_views(keys.per_example(jax.random.key(0), 32), batch, views)
    read, seen = np.float64(batch['second']) / 255, np.float64(augmented['second'])
    np.testing.assert_allclose(augmented['images'], batch['images'] / 255, atol=1e-6)
    greys = np.ptp(seen, axis=-1).max(axis=(1, 2)) < 1e-6
    inverted = np.where(read < 0.5, read, 1 - read)
    solarized = np.abs(seen - inverted).max(axis=(1, 2, 3)) < 1e-6
    # A blur keeps the channels' means and takes away from their contrasts.
    means = np.abs(seen.mean(axis=(1, 2)) - read.mean(axis=(1, 2))).max(axis=-1) < 0.02
    fainter = (seen.std(axis=(1, 2)) <= read.std(axis=(1, 2)) + 1e-6).all(axis=-1)
    blurred = means & fainter & ~greys
    assert (greys.astype(int) + solarized + blurred == 1).all()
    assert min(greys.sum(), solarized.sum(), blurred.sum()) >= 4


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'hidden': 0}, 'hidden = 0'),
        ({'context_weight': -1.0}, 'context_weight = -1.0'),
        ({'reconstruction_weight': -0.5}, 'reconstruction_weight = -0.5'),
        ({'masking': {'ratio': 0.4}}, 'masking.ratio = 0.4'),
    ],
)
def test_impossible_options_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(**changes)
    assert '\n' not in str(error.value)
