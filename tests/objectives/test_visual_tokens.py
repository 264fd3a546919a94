"""VQ-KD and BEiT v2: losses against plain NumPy loops, and the one as the other's tokenizer."""

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.objectives import BEiTv2

IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
SMALL = dict(patch_size=(8, 8), width=16, depth=1, heads=2)


def bound(config):
    return assembly.make_objective(experiment.from_config(config), fields=image_fields(10))


def batch_of(images):
    return {'images': images, 'keys': keys.per_example(jax.random.key(3), len(images))}


@pytest.fixture
def vqkd():
    config = experiment.default_config('vqkd')
    config.data.update(image_size=(32, 32), batch_size=4)
    config.model.update(SMALL)
    config.objective.target.model.update(SMALL)
    config.objective.decoder.update(width=8, heads=2, depth=1)
    config.objective.quantizer.update(num_codes=6, width=4, decay=0.5)
    config.objective.commitment = 0.25
    objective = bound(config)
    return objective, objective.init(jax.random.key(2), IMAGES)


@pytest.fixture
def beitv2():
    config = experiment.default_config('beitv2')
    config.data.update(image_size=(32, 32), batch_size=4)
    config.model.update(patch_size=(8, 8), width=32, depth=3, heads=2, mask_token=True)
    config.objective.masking.update(num_masked=6, min_block=2)
    config.objective.update(branch_layer=2)
    config.objective.target.model.update(SMALL)
    config.objective.target.update(num_codes=6, code_width=4)

    def make(**changes):
        config.objective.morphing.update(changes)
        objective = bound(config)
        return objective, objective.init(jax.random.key(2), IMAGES)

    make.config = config
    return make


@pytest.mark.slow
def test_vqkd_restores_the_teacher_from_codes_and_commits_to_them(vqkd):
    objective, variables = vqkd
    batch, key = batch_of(IMAGES), jax.random.key(4)
    loss, metrics, state = objective.loss(variables, batch, key, 0)
    book = objective.quantizer.prepare(
        variables['state']['codebook'],
        encodings_of(objective, variables),
        key=keys.named(key, 'codes'),
    )
    codes = np.asarray(book['codes'])
    commitment, chosen = [], []
    for encoding in encodings_of(objective, variables):
        nearest = codes[np.argmin(((codes - encoding) ** 2).sum(1))]
        commitment.append(((nearest - encoding) ** 2).mean())
        chosen.append(nearest)
    restored = np.asarray(objective.decode(variables['params'], np.reshape(chosen, (3, 16, 4))))
    target = np.asarray(objective.targets(variables, IMAGES))
    distances = [
        1 - r @ t / np.linalg.norm(r) / np.linalg.norm(t)
        for r, t in zip(restored.reshape(48, -1), target.reshape(48, -1), strict=True)
    ]
    np.testing.assert_allclose(loss, np.mean(distances) + 0.25 * np.mean(commitment), rtol=1e-5)
    np.testing.assert_allclose(metrics['commitment'], np.mean(commitment), rtol=1e-4)
    used = len(np.unique(chosen, axis=0)) / 6
    np.testing.assert_allclose(metrics['codes_used'], used, rtol=1e-6)
    assert bool(state['codebook']['ready'])


def encodings_of(objective, variables):
    """Unit encodings [48,4] by hand from the encoder's tokens."""
    tokens = np.asarray(objective.features(variables, IMAGES).tokens)
    code = jax.tree.map(np.asarray, variables['params']['code'])
    hidden = np.tanh(tokens @ code['fc1']['kernel'] + code['fc1']['bias'])
    encodings = (hidden @ code['fc2']['kernel'] + code['fc2']['bias']).reshape(48, -1)
    return encodings / np.linalg.norm(encodings, axis=1, keepdims=True)


@pytest.mark.slow
def test_the_gradient_passes_the_quantiser_straight(vqkd):
    """Small steps of the encodings change the loss as steps of the codes would."""
    objective, variables = vqkd
    batch, key = batch_of(IMAGES), jax.random.key(4)
    codebook = variables['state']['codebook'] | {'ready': np.ones((), bool)}
    variables = {**variables, 'state': {'codebook': codebook}}
    params = variables['params']

    def loss(bias):
        code = {**params['code'], 'fc2': {**params['code']['fc2'], 'bias': bias}}
        new = {**variables, 'params': {**params, 'code': code}}
        value, metrics, _ = objective.loss(new, batch, key, 0)
        return metrics['restoration']

    def through_codes(bias):
        tokens = objective.features(variables, IMAGES).tokens
        code = params['code']
        hidden = jax.numpy.tanh(tokens @ code['fc1']['kernel'] + code['fc1']['bias'])
        raw = hidden @ code['fc2']['kernel'] + bias
        encodings = raw / jax.numpy.linalg.norm(raw, axis=-1, keepdims=True)
        still = np.asarray(encodings_of(objective, variables)).reshape(3, 16, 4)
        codes = np.asarray(codebook['codes'])
        nearest = codes[np.argmax(still @ codes.T, axis=-1)]
        restored = objective.decode(params, nearest + encodings - still)
        target = objective.targets(variables, IMAGES)
        norms = [jax.numpy.linalg.norm(x, axis=-1) for x in (restored, target)]
        return (1 - (restored * target).sum(-1) / norms[0] / norms[1]).mean()

    bias = params['code']['fc2']['bias']
    found, expected = jax.grad(loss)(bias), jax.grad(through_codes)(bias)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['none', 'constant'])
def test_beitv2_predicts_codes_of_hidden_patches_twice(beitv2, schedule):
    objective, variables = beitv2(schedule=schedule, num_merged=8, num_steps=2)
    batch, key = batch_of(IMAGES), jax.random.key(4)
    mask = np.asarray(objective.masking(keys.named(batch['keys'], 'mask'), grid=objective.grid))
    outputs = [np.asarray(x) for x in objective.student(variables['params'], IMAGES, mask)]
    encodings = np.asarray(objective.targets(variables, IMAGES))
    groups = np.tile(np.arange(16), (3, 1))
    if schedule != 'none':
        draw = jax.random.split(key, 1)[0]
        groups = np.asarray(objective.morphing.groups(draw, encodings))
        assert len(np.unique(groups[0])) == 8
    codes = np.asarray(variables['teacher']['codes'])
    head = jax.tree.map(np.asarray, variables['params']['head']['linear'])
    losses, hits = [[], []], []
    for image in range(3):
        for patch in np.flatnonzero(mask[image]):
            members = groups[image] == groups[image][patch]
            code = np.argmax(codes @ encodings[image][members].mean(0))
            for branch, tokens in enumerate(outputs):
                token = tokens[image][members].mean(0)
                logits = token @ head['kernel'] + head['bias']
                losses[branch].append(np.log(np.exp(logits).sum()) - logits[code])
                if branch == 0:
                    hits.append(np.argmax(logits) == code)
    loss, metrics, _ = objective.loss(variables, batch, key, 0)
    np.testing.assert_allclose(loss, np.mean(losses[0]) + np.mean(losses[1]), rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(hits), rtol=1e-6)


def test_the_branch_can_be_left_out(beitv2):
    beitv2.config.objective.branch_depth = 0
    objective, variables = beitv2(schedule='none')
    assert set(variables['params']) == {'encoder', 'head'}
    outputs = objective.student(variables['params'], IMAGES, np.zeros((3, 16), bool))
    np.testing.assert_allclose(outputs[0], objective.features(variables, IMAGES).tokens, atol=1e-5)


@pytest.mark.parametrize(
    ('section', 'changes', 'message'),
    [
        ('model', {'mask_token': False}, 'config.model.mask_token = False'),
        ('objective', {'branch_layer': 3}, 'config.objective.branch_layer = 3'),
    ],
)
def test_what_does_not_fit_is_told(beitv2, section, changes, message):
    beitv2.config[section].update(changes)
    with pytest.raises(UserError, match=message):
        beitv2()


def test_a_tokenizer_that_is_none(beitv2, tmp_path):
    objective, _ = beitv2()
    with pytest.raises(UserError, match=r'target\.weights is not set'):
        objective.pretrained()
    beitv2.config.objective.target.weights = str(tmp_path)
    objective, _ = beitv2()
    with pytest.raises(UserError, match=r'target\.weights: .* not a work directory'):
        objective.pretrained()
    assert isinstance(objective, BEiTv2)
