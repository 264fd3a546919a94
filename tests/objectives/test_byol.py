"""BYOL on tokens against a plain NumPy computation, and its two views."""

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax.data import Colors, DataConfig, batch_spec, image_fields

IMAGES = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))


@pytest.fixture
def prepared():
    config = experiment.default_config('byol')
    config.data.update(image_size=(32, 32), batch_size=4)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.update(hidden=8, projection=6, token_weight=2.0, pooled_weight=0.5)
    config.objective.morphing.update(schedule='constant', num_merged=8, num_steps=2)
    config.train.total_steps = 1
    config.train.ema.decay = 0.9
    run = experiment.from_config(config)
    objective = assembly.make_objective(run, fields=image_fields(10))
    first, second = (objective.init(jax.random.key(i), IMAGES)['params'] for i in (2, 3))
    return objective, {'params': first, 'ema': second}


def head_by_hand(params, x):
    """Linear, batch norm over all rows, ReLU, linear."""
    params = jax.tree.map(np.asarray, params)
    shape = x.shape[:-1]
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    x = x @ params['fc1']['kernel'] + params['fc1']['bias']
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * params['norm']['scale'] + params['norm'][
        'bias'
    ]
    x = np.maximum(x, 0) @ params['fc2']['kernel'] + params['fc2']['bias']
    return x.reshape(*shape, -1)


def cosine_distance(x, y):
    return 1 - (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def average(tokens, groups):
    return np.stack(
        [[image[ids == i].mean(0) for i in ids] for image, ids in zip(tokens, groups, strict=True)]
    )


def test_the_loss(prepared):
    objective, variables = prepared
    views = IMAGES, IMAGES[:, ::-1] * 0.8
    key = jax.random.key(4)
    batch = {
        'images': views[0],
        'second': views[1],
        'keys': keys.per_example(jax.random.key(5), 4),
    }
    token_losses, pooled_losses = [], []
    for direction, (seen, aimed) in enumerate((views, views[::-1])):
        student, teacher = variables['params'], variables['ema']
        tokens = np.asarray(objective.features({'params': student}, seen).tokens)
        aims = np.asarray(objective.features({'params': teacher}, aimed).tokens)
        prediction = head_by_hand(
            student['token_predictor'], head_by_hand(student['token_projector'], tokens)
        )
        target = head_by_hand(teacher['token_projector'], aims)
        draw = jax.random.split(keys.named(key, f'view{direction}'), 1)[0]
        groups = np.asarray(objective.morphing.groups(draw, np.float32(target)))
        assert all(len(np.unique(image)) == 8 for image in groups)
        token_losses.append(
            cosine_distance(average(prediction, groups), average(target, groups)).mean()
        )
        pooled = head_by_hand(student['pooled_projector'], tokens.mean(1))
        pooled = head_by_hand(student['pooled_predictor'], pooled)
        aim = head_by_hand(teacher['pooled_projector'], aims.mean(1))
        pooled_losses.append(cosine_distance(pooled, aim).mean())
    loss, metrics, _ = objective.loss(variables, batch, key, 0)
    np.testing.assert_allclose(metrics['token_loss'], np.mean(token_losses), rtol=1e-4)
    np.testing.assert_allclose(metrics['pooled_loss'], np.mean(pooled_losses), rtol=1e-4)
    expected = 2.0 * np.mean(token_losses) + 0.5 * np.mean(pooled_losses)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_average_gets_no_gradient(prepared):
    objective, variables = prepared
    batch = {
        'images': IMAGES,
        'second': IMAGES * 0.5,
        'keys': keys.per_example(jax.random.key(5), 4),
    }
    gradient = jax.grad(lambda v: objective.loss(v, batch, jax.random.key(0), 0)[0])(variables)
    sizes = {k: max(np.abs(x).max() for x in jax.tree.leaves(g)) for k, g in gradient.items()}
    assert sizes['ema'] == 0 and sizes['params'] > 1e-4


def test_the_second_view_is_the_first_in_other_colours(prepared):
    objective, _ = prepared
    config = DataConfig(image_size=(32, 32), flip=0.5, colors=Colors(brightness=0.4))
    views = objective.views(config)
    assert views == {'images': config.view(), 'second': config.view(like='images')}
    assert set(batch_spec(config, views, objective.inputs.fields)) == {'images', 'labels'}
