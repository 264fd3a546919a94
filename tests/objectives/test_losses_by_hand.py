"""Each method's loss against a plain NumPy loop over images and tokens.

The loops take the student's prediction and the target as given (the models have their own tests)
and repeat what the papers say happens between them and the loss.
"""

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax.data import image_fields


@pytest.fixture
def prepared(tiny_config):
    """Function method -> objective, variables, batch, key, prediction, target, mask."""

    def make(method, change=lambda config: None):
        config = tiny_config(method)
        config.model.drop_path = 0.0
        change(config)
        run = experiment.from_config(config)
        objective = assembly.make_objective(run, fields=image_fields(10))
        images = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
        variables = objective.init(jax.random.key(2), images)
        key = jax.random.key(3)
        batch = {
            'images': images,
            'keys': keys.per_example(key, 3),
            'labels': np.array([1, 5, 9]),
        }
        if method == 'classification':
            return objective, variables, batch, key
        mask = objective.mask(variables, batch, 0)
        prediction = objective.predict(variables, batch, mask)
        target = objective.targets(variables, images)
        arrays = (np.asarray(x) for x in (prediction, target, mask))
        return objective, variables, batch, key, *arrays

    return make


def loss_of(objective, variables, batch, key):
    return float(objective.loss(variables, batch, key, 0)[0])


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def groups_by_hand(tokens, per_step, steps, protect):
    """dtm.md, step 6, for one image: members of every group, in the order of the list."""
    groups = [[i] for i in range(len(tokens))]
    for _ in range(steps):
        a, b = groups[0::2], groups[1::2]
        joining = min(per_step, (len(groups) - protect) // 2)
        scores = np.array([[cosine(tokens[x].mean(0), tokens[y].mean(0)) for y in b] for x in a])
        best = scores.max(axis=1)
        if protect:
            best[0] = -np.inf
        order = np.argsort(-best, kind='stable')
        merged = set(order[:joining].tolist())
        for i in sorted(merged):
            b[int(scores[i].argmax())] = b[int(scores[i].argmax())] + a[i]
        rest = range(len(a)) if protect else order
        groups = [a[i] for i in rest if i not in merged] + b
    return groups


@pytest.mark.parametrize('distance', ['cosine', 'l1', 'l2', 'smooth_l1'])
@pytest.mark.parametrize('protect', [True, False])
def test_dtm(prepared, distance, protect):
    def change(config):
        config.objective.distance.name = distance
        config.objective.morphing.grouping.protect_first = protect

    objective, variables, batch, key, prediction, target, _ = prepared('dtm', change)
    losses = []
    for draw in jax.random.split(key, 2):
        schedule = objective.morphing.draw(draw, num_tokens=target.shape[1])
        per_step, steps = (int(x) for x in schedule)
        for image in range(3):
            p, t = np.float64(prediction[image]), np.float64(target[image])
            for group in groups_by_hand(t, per_step, steps, protect):
                x, y = p[group].mean(axis=0), t[group].mean(axis=0)
                d = np.abs(x - y)
                value = {
                    'cosine': 1 - cosine(x, y),
                    'l1': d.mean(),
                    'l2': (d**2).mean(),
                    'smooth_l1': np.where(d < 2, 0.25 * d**2, d - 1).mean(),
                }[distance]
                losses += [value] * len(group)
    assert len(losses) == 2 * 3 * target.shape[1]
    np.testing.assert_allclose(
        loss_of(objective, variables, batch, key), np.mean(losses), rtol=1e-5
    )


def test_dtm_without_morphing_is_the_token_wise_loss(prepared):
    def change(config):
        config.objective.morphing.schedule = 'none'

    objective, variables, batch, key, prediction, target, _ = prepared('dtm', change)
    p, t = np.float64(prediction), np.float64(target)
    expected = np.mean([1 - cosine(p[i, n], t[i, n]) for i in range(3) for n in range(16)])
    np.testing.assert_allclose(loss_of(objective, variables, batch, key), expected, rtol=1e-5)


def test_mae_is_the_mean_square_on_hidden_normalised_patches(prepared):
    objective, variables, batch, key, prediction, target, mask = prepared('mae')
    assert mask.sum(axis=1).tolist() == [12, 12, 12]
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    images = (np.float64(batch['images']) - mean) / std
    total, count = 0.0, 0
    for image in range(3):
        for token in range(16):
            row, column = divmod(token, 4)
            patch = images[image, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].reshape(-1)
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(target[image, token], patch, atol=2e-5)
            if mask[image, token]:
                total += ((prediction[image, token] - patch) ** 2).mean()
                count += 1
    np.testing.assert_allclose(loss_of(objective, variables, batch, key), total / count, rtol=1e-5)


def test_simmim_is_the_absolute_error_on_hidden_pixels(prepared):
    def change(config):
        config.objective.masking.ratio = 0.5

    objective, variables, batch, key, prediction, target, mask = prepared('simmim', change)
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    images = (np.float64(batch['images']) - mean) / std
    total, hidden = 0.0, 0.0
    for image in range(3):
        shown = np.zeros((32, 32, 3))
        pixels = np.zeros((32, 32))
        for token in range(16):
            row, column = (8 * x for x in divmod(token, 4))
            shown[row : row + 8, column : column + 8] = prediction[image, token].reshape(8, 8, 3)
            pixels[row : row + 8, column : column + 8] = mask[image, token]
        total += (np.abs(shown - images[image]) * pixels[..., None]).sum()
        hidden += pixels.sum()
    expected = total / (hidden + 1e-5) / 3
    np.testing.assert_allclose(loss_of(objective, variables, batch, key), expected, rtol=1e-5)


def test_classification_is_smoothed_cross_entropy(prepared):
    def change(config):
        config.objective.update(head_scale=1.0, label_smoothing=0.1)

    objective, variables, batch, key = prepared('classification', change)
    params = variables['params']
    features = np.float64(objective.features(variables, batch['images']).tokens).mean(axis=1)
    centred = features - features.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(features.var(axis=-1, keepdims=True) + 1e-6)
    head = jax.tree.map(np.float64, params['head'])
    normed = normed * head['norm']['scale'] + head['norm']['bias']
    logits = normed @ head['linear']['kernel'] + head['linear']['bias']
    log = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.mean(
        [-(0.9 * log[i, label] + 0.1 * log[i].mean()) for i, label in enumerate([1, 5, 9])]
    )
    np.testing.assert_allclose(loss_of(objective, variables, batch, key), expected, rtol=1e-5)
