"""HPM against a plain NumPy computation: what is hidden, what is learnt, and what is not."""

import fractions
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.clock import Clock
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

ROOT = Path(__file__).parents[2]

IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(3), 3)}
KEY = jax.random.key(4)
# Four updates are an epoch, the run is ten of them.
CLOCK = Clock(batch_size=4, epoch_examples=16, total_steps=40)
NUM_TOKENS, NUM_HIDDEN = 16, 12


def make(change=lambda config: None, *, decay=0.9, clock=CLOCK):
    config = experiment.default_config('hpm')
    config.data.image_size = (32, 32)
    config.model.update(patch_size=(8, 8), width=32, depth=1, heads=2)
    config.objective.decoder.update(width=16, depth=1, heads=2)
    config.train.total_steps = 40
    config.train.ema.decay = decay
    change(config)
    run = experiment.from_config(config)
    return assembly.make_objective(run, fields=image_fields(10), clock=clock)


@pytest.fixture(scope='module')
def variables():
    objective = make()
    first, second = (objective.init(jax.random.key(i), IMAGES)['params'] for i in (5, 6))
    return {'params': first, 'ema': second}


def decoded(objective, params, visible, name):
    """What a decoder says of images of which the encoder sees the patches `visible` [B,K]."""
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    images = np.float32((IMAGES - mean) / std)
    encoded = objective.encoder.apply({'params': params['encoder']}, images, visible_ids=visible)
    shared = {part: params['decoder'][part] for part in ('embed', 'mask_token')}
    return objective.decoder.apply(
        {'params': {**shared, **params[name]}},
        encoded.tokens,
        visible_ids=visible,
        grid=(4, 4),
        features=params[name]['predict']['kernel'].shape[-1],
        class_token=encoded.class_token,
    )


def mask_by_hand(objective, variables, num_hardest):
    """The patches that the average predicts to be hardest, then the others in random order."""
    everything = np.arange(NUM_TOKENS)[None].repeat(3, axis=0)
    scores = decoded(objective, variables['ema'], everything, 'loss_decoder')
    scores = np.asarray(scores).mean(axis=-1)
    mask = np.zeros((3, NUM_TOKENS), bool)
    for image, key in enumerate(keys.named(BATCH['keys'], 'mask')):
        noise = np.asarray(jax.random.uniform(key, (NUM_TOKENS,)))
        hardest = sorted(range(NUM_TOKENS), key=lambda n: -scores[image, n])[:num_hardest]  # noqa: B023
        others = sorted(set(range(NUM_TOKENS)) - set(hardest), key=lambda n: noise[n])  # noqa: B023
        mask[image, hardest + others[: NUM_HIDDEN - num_hardest]] = True
    return mask


def losses_by_hand(objective, variables, mask, groups=None):
    """Mean square of every patch [B,N] and score of every patch [B,N]; with `groups` [B,N] of the
    means of a patch's group.
    """
    visible = np.stack([np.flatnonzero(~row) for row in mask])
    prediction = np.float64(decoded(objective, variables['params'], visible, 'decoder'))
    scores = decoded(objective, variables['params'], visible, 'loss_decoder')
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    images = (np.float64(IMAGES) - mean) / std
    losses = np.zeros(mask.shape)
    for image in range(3):
        target = np.zeros((NUM_TOKENS, 192))
        for token in range(NUM_TOKENS):
            row, column = (8 * x for x in divmod(token, 4))
            target[token] = images[image, row : row + 8, column : column + 8].reshape(-1)
        for token in range(NUM_TOKENS):
            members = [token]
            if groups is not None:
                members = np.flatnonzero(groups[image] == groups[image, token])
            difference = prediction[image, members].mean(0) - target[members].mean(0)
            losses[image, token] = (difference**2).mean()
    return losses, np.float64(scores).mean(axis=-1)


def ranking_by_hand(losses, scores, mask):
    """Over ordered pairs of hidden patches whose losses differ."""
    total, valid = 0.0, 0
    for image in range(len(mask)):
        hidden = np.flatnonzero(mask[image])
        for i in hidden:
            for j in hidden:
                p = 1 / (1 + np.exp(-(scores[image, i] - scores[image, j])))
                if losses[image, i] > losses[image, j]:
                    total -= np.log(p + 1e-6)
                elif losses[image, i] < losses[image, j]:
                    total -= np.log(1 - p + 1e-6)
                valid += losses[image, i] != losses[image, j]
    return total / valid


@pytest.mark.parametrize(('step', 'num_hardest'), [(0, 0), (3, 0), (4, 1), (20, 3), (39, 6)])
def test_what_is_hidden(variables, step, num_hardest):
    objective = make()
    mask = np.asarray(objective.mask(variables, BATCH, step))
    np.testing.assert_array_equal(mask, mask_by_hand(objective, variables, num_hardest))
    assert mask.sum(axis=1).tolist() == [NUM_HIDDEN] * 3


@pytest.mark.parametrize('learning', ['ranking', 'values'])
def test_the_loss(variables, learning):
    def change(config):
        config.objective.update(learning=learning, learning_weight=0.5)

    objective = make(change)
    mask = mask_by_hand(objective, variables, num_hardest=3)
    losses, scores = losses_by_hand(objective, variables, mask)
    if learning == 'ranking':
        expected = ranking_by_hand(losses, scores, mask)
    else:
        values = []
        for image in range(3):
            hidden = np.flatnonzero(mask[image])
            own = losses[image, hidden]
            aims = (own - own.mean()) / np.sqrt(own.var(ddof=1) + 1e-6)
            values += list((scores[image, hidden] - aims) ** 2)
        expected = np.mean(values)
    loss, metrics, state = objective.loss(variables, BATCH, KEY, 20)
    np.testing.assert_allclose(metrics['reconstruction_loss'], losses[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['learning_loss'], expected, rtol=1e-4)
    np.testing.assert_allclose(loss, losses[mask].mean() + 0.5 * expected, rtol=1e-5)
    assert metrics['hardest'] == 3 and state == {}


@pytest.mark.slow
def test_morphed_the_loss_of_a_patch_is_that_of_its_group(variables):
    def change(config):
        config.objective.morphing.update(schedule='constant', num_merged=8, num_steps=2)

    objective = make(change)
    mask = mask_by_hand(objective, variables, num_hardest=3)
    draw = jax.random.split(KEY, 1)[0]
    groups = objective.morphing.groups(draw, objective.targets(variables, IMAGES))
    losses, scores = losses_by_hand(objective, variables, mask, np.asarray(groups))
    losses = np.round(losses, 9)  # the means of a group are one number, whatever the last bit
    _, metrics, _ = objective.loss(variables, BATCH, KEY, 20)
    np.testing.assert_allclose(metrics['reconstruction_loss'], losses[mask].mean(), rtol=1e-5)
    per_image = [ranking_by_hand(*(x[i : i + 1] for x in (losses, scores, mask))) for i in range(3)]
    np.testing.assert_allclose(metrics['learning_loss'], np.mean(per_image), rtol=1e-4)


def test_the_curriculum_of_the_paper():
    """alpha(epoch) = 0.5 (epoch + 1) / 200 of 147 patches, rounded down, in epochs of 10 steps."""

    def change(config):
        config.data.image_size = (56, 56)
        config.model.patch_size = (4, 4)  # 14 x 14 of them

    objective = make(change, clock=Clock(8, epoch_examples=80, total_steps=2000))
    counted = jax.jit(jax.vmap(objective.num_hardest))(np.arange(2000))
    for step, count in enumerate(counted):
        assert count == math.floor(147 * fractions.Fraction(step // 10 + 1, 400))
    assert counted[0] == 0 and counted[-1] == 73


def test_the_recipe_of_the_paper():
    config = configs.load(str(ROOT / 'configs' / 'hpm.py'))
    run = experiment.from_config(config)
    clock = assembly.make_clock(run, 1_281_167)
    epochs = np.array([0, 50, 100, 400]) * (clock.epoch_examples / clock.batch_size)
    decays = [run.train.ema.decays(clock)(step) for step in np.ceil(epochs)]
    np.testing.assert_allclose(decays, [0.999, 0.99945, 0.9999, 0.9999], atol=1e-6)
    warm = math.ceil(40 * clock.epoch_examples / clock.batch_size)
    rate = make_schedule(run.optimizer, clock)(warm)
    np.testing.assert_allclose(rate, 1.5e-4 * 2048 / 256, rtol=1e-4)
    objective = assembly.make_objective(run, fields=image_fields(1000), clock=clock)
    assert objective.masking.count(objective.grid) == 147 and objective.num_hardest(0) == 0


@pytest.mark.parametrize(
    ('options', 'counts'),
    [
        (dict(start_share=0.5, end_share=1.0), [6, 8, 12]),
        (dict(start_share=1.0, end_share=0.0), [10, 7, 0]),
        (dict(end_share=0.0), [0, 0, 0]),
        # Two stages of twenty steps; one stage.
        (dict(stage_epochs=None, stage_percent=50.0), [3, 3, 6]),
        (dict(stage_epochs=None, stage_steps=100), [6, 6, 6]),
    ],
)
def test_other_curricula(options, counts):
    objective = make(lambda config: config.objective.update(options))
    assert [int(objective.num_hardest(step)) for step in (0, 12, 39)] == counts


def test_both_decoders_share_what_comes_before_their_blocks(variables):
    params = variables['params']
    assert set(params['decoder']) == {'embed', 'mask_token', 'blocks', 'norm', 'predict'}
    assert set(params['loss_decoder']) == {'blocks', 'norm', 'predict'}
    first, second = (
        params[name]['blocks']['mlp']['fc1']['kernel'] for name in ('decoder', 'loss_decoder')
    )
    assert first.shape == second.shape and np.abs(first - second).max() > 0.01


def sizes(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_where_gradients_go(variables):
    """None to the average, and none from the loss to be predicted into the reconstruction."""
    objective = make()

    def losses(variables):
        loss, metrics, _ = objective.loss(variables, BATCH, KEY, 20)
        return loss, metrics['learning_loss']

    pull = jax.vjp(jax.jit(losses), variables)[1]
    (whole,), (learning,) = pull((1.0, 0.0)), pull((0.0, 1.0))
    assert sizes(whole['ema']) == 0 and sizes(whole['params']) > 1e-3
    assert sizes(learning['params']['decoder']['predict']) == 0
    assert sizes(learning['params']['decoder']['blocks']) == 0
    for part in (
        learning['params']['loss_decoder'],
        learning['params']['decoder']['embed'],
        learning['params']['encoder'],
    ):
        assert sizes(part) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('target', ['pixels', 'hog', 'ema'])
def test_any_target_is_reconstructed(target):
    def change(config):
        distance = 'l2' if target == 'pixels' else 'cosine'
        changes = [('objective.target.name', target), ('objective.distance.name', distance)]
        configs.override(config, experiment.Experiment, changes)

    objective = make(change)
    variables = objective.init(jax.random.key(0), IMAGES)
    loss, metrics, _ = objective.loss({**variables, 'ema': variables['params']}, BATCH, KEY, 0)
    assert np.isfinite(loss) and metrics['reconstruction_loss'] > 0
    # The scores are means of as many numbers as a patch has pixels, whatever is reconstructed.
    assert variables['params']['loss_decoder']['predict']['kernel'].shape[-1] == 192


def test_pictures(variables):
    sheets = make().pictures(variables, BATCH, KEY, 20)
    assert list(sheets) == ['reconstruction', 'hardness']
    predicted, hidden, losses = sheets['hardness']
    np.testing.assert_array_equal(hidden.values, make().mask(variables, BATCH, 20))
    assert predicted.values.shape == losses.values.shape == (3, NUM_TOKENS)
    # What was visible has no loss.
    np.testing.assert_array_equal(np.asarray(losses.values) > 0, hidden.values)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(start_share=1.5), 'start_share = 1.5: must be at least 0 and at most 1'),
        (dict(end_share=-0.1), 'end_share = -0.1'),
        (dict(stage_epochs=None), 'the length of a stage is missing'),
        (dict(stage_steps=3), 'stage_steps and stage_epochs are both given'),
        (dict(learning='both'), 'learning'),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        make(lambda config: config.objective.update(change))


def test_a_stage_is_an_epoch_of_whatever_length():
    """floor(count * 0.5 (e + 1) / E) in epoch e, where an epoch is a step and a quarter."""
    clock = Clock(batch_size=4, epoch_examples=5, total_steps=25)
    objective = make(clock=clock)
    found = [int(objective.num_hardest(step)) for step in range(25)]
    epochs = [step * 4 // 5 for step in range(25)]
    assert epochs[-1] == 19 and len(set(epochs)) == 20
    assert found == [NUM_HIDDEN * (e + 1) // (2 * 20) for e in epochs]


def test_other_maskings_are_no_choice_here():
    config = experiment.default_config('hpm')
    with pytest.raises(UserError, match=r'config\.objective\.masking\.name'):
        configs.override(config, experiment.Experiment, [('objective.masking.name', 'grid')])


def test_it_needs_the_average():
    with pytest.raises(UserError, match='ema.decay is none'):
        make(decay=None)
