"""Classification: targets and loss against a loop by timm's rule, metrics, layouts, mistakes."""

import dataclasses

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys, sharding
from mim_jax.data import image_fields, make_source, train_batches
from mim_jax.data.erasing import erase
from mim_jax.errors import UserError
from mim_jax.program import Program

CLASSES, COUNT = 10, 8
PUBLISHED = dict(label_smoothing=0.1, erasing=0.25, mixup=0.8, cutmix=1.0, head_scale=1.0)


@pytest.fixture
def prepared(tiny_config):
    """Function (fields of the objective) -> objective, variables, batch, key."""

    def make(**fields):
        config = tiny_config('classification')
        config.model.drop_path = 0.0
        config.objective.update(fields)
        run = experiment.from_config(config)
        objective = assembly.make_objective(run, fields=image_fields(CLASSES))
        images = jax.random.uniform(jax.random.key(1), (COUNT, 32, 32, 3))
        variables = objective.init(jax.random.key(2), images)
        batch = {
            'images': images,
            'keys': keys.per_example(jax.random.key(3), COUNT),
            'labels': np.array([1, 5, 9, 0, 2, 2, 7, 1]),
        }
        return objective, variables, batch, jax.random.key(4)

    return make


def smoothed(label, smoothing):
    """timm: off = smoothing / classes everywhere, on = 1 - smoothing + off at the label."""
    off = smoothing / CLASSES
    target = np.full(CLASSES, off)
    target[label] = 1.0 - smoothing + off
    return target


def loop_loss(logits, targets):
    total = 0.0
    for row, target in zip(np.asarray(logits, np.float64), targets, strict=True):
        log_normalizer = np.log(np.exp(row - row.max()).sum()) + row.max()
        total += (target * (log_normalizer - row)).sum()
    return total / len(targets)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('per', ['batch', 'image'])
@pytest.mark.parametrize('kind', [dict(mixup=0.8), dict(cutmix=1.0), {}])
def test_targets_and_loss_are_timms(prepared, smoothing, per, kind):
    fields = dict(label_smoothing=smoothing, mix_per=per, head_scale=1.0)
    objective, variables, batch, key = prepared(**fields, **kind)
    images, targets = (np.asarray(x) for x in objective.augmented(batch, key))
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)  # all of the label's mass
    assert (targets >= smoothing / CLASSES - 1e-7).all()
    shares = []
    clean = np.asarray(batch['images'], np.float64)
    for i in range(COUNT):
        j = (i - COUNT // 2) % COUNT
        if 'cutmix' in kind:
            own = (images[i] == np.asarray(batch['images'])[i]).all(axis=-1).mean()
        elif kind:
            # The blend's share by least squares: image = share own + (1 - share) partner.
            difference = (clean[i] - clean[j]).ravel()
            own = difference @ (images[i] - clean[j]).ravel() / (difference @ difference)
        else:
            own = 1.0
            np.testing.assert_array_equal(images[i], batch['images'][i])
        shares.append(own)
        first, second = (smoothed(batch['labels'][k], smoothing) for k in (i, j))
        np.testing.assert_allclose(targets[i], own * first + (1 - own) * second, atol=1e-4)
    assert (np.ptp(shares) < 1e-4) == (per == 'batch' or not kind)
    loss, metrics, state = objective.loss(variables, batch, key, 0)
    logits = objective.logits(variables, images)
    np.testing.assert_allclose(loss, loop_loss(logits, targets), rtol=1e-5)
    top1 = np.mean(
        [row.argmax() == target.argmax() for row, target in zip(logits, targets, strict=True)]
    )
    np.testing.assert_allclose(metrics['top1'], top1, atol=1e-6)
    assert state == {}


def test_the_metric_without_mixing_is_of_the_image_s_own_label(prepared):
    objective, variables, batch, key = prepared(label_smoothing=0.3, head_scale=1.0)
    _, metrics, _ = objective.loss(variables, batch, key, 0)
    right = np.asarray(objective.logits(variables, batch['images'])).argmax(1) == batch['labels']
    np.testing.assert_allclose(metrics['top1'], right.mean(), atol=1e-6)


def test_images_are_erased_before_they_are_mixed_and_never_when_judged(prepared):
    objective, variables, batch, key = prepared(**PUBLISHED | dict(erasing=1.0, cutmix=0.0))
    images, targets = objective.augmented(batch, key)
    inputs = objective.inputs
    erased = erase(
        batch['keys'], batch['images'], probability=1.0, mean=inputs.mean, std=inputs.std
    )
    plain = dataclasses.replace(objective, erasing=0.0)
    expected, same_targets = plain.augmented({**batch, 'images': erased}, key)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    np.testing.assert_array_equal(targets, same_targets)
    assert not np.allclose(images, plain.augmented(batch, key)[0])
    unchanged = dataclasses.replace(plain, mixup=0.0, label_smoothing=0.0)
    np.testing.assert_array_equal(
        objective.logits(variables, batch['images']), unchanged.logits(variables, batch['images'])
    )


def test_with_nothing_on_images_are_as_they_came(prepared):
    objective, _, batch, key = prepared()
    images, targets = objective.augmented(batch, key)
    np.testing.assert_array_equal(images, batch['images'])
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[batch['labels']])


@pytest.mark.slow
def test_erased_and_mixed_training_is_the_same_in_any_layout(tiny_config):
    found = []
    for accumulation, mesh in ((1, {'data': 1}), (4, {'data': 2}), (2, {'data': 2, 'fsdp': 2})):
        config = tiny_config('classification', accumulation=accumulation)
        config.objective.update(PUBLISHED)
        config.mesh.update(min_shard_size=64, **mesh)
        run = experiment.from_config(config)
        program = Program.make(run, epoch_examples=64, fields=image_fields(CLASSES))
        source = make_source(run.data, split='train')
        batch = next(train_batches(source, run.data, seed=0, views=program.views))
        state, step = program.init({}), program.trace().lower().compile()
        _, metrics = step(state, sharding.put_batch(batch, program.mesh))
        found.append([float(metrics[name]) for name in ('loss', 'top1', 'grad_norm')])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=2e-4)


def test_a_batch_without_pairs_is_told_before_anything_runs(tiny_config):
    config = tiny_config('classification', accumulation=16)
    config.mesh.data = 1
    config.objective.mixup = 0.8
    with pytest.raises(UserError, match='= 1 images are computed at once.*2 equal parts.*in pairs'):
        Program.make(experiment.from_config(config), epoch_examples=64, fields=image_fields(10))
    config.objective.mixup = 0.0
    Program.make(experiment.from_config(config), epoch_examples=64, fields=image_fields(10))


def test_data_without_labels_is_told(prepared, tiny_config):
    run = experiment.from_config(tiny_config('classification'))
    objective = assembly.make_objective(run, fields=image_fields(None))
    with pytest.raises(UserError, match='classification needs labels, and this data source has no'):
        objective.init(jax.random.key(0), np.zeros((2, 32, 32, 3), np.float32))
