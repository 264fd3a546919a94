"""CAE v2 against a plain NumPy loop: class token, visible and foretold tokens, cosine."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, image_fields
from mim_jax.errors import UserError
from mim_jax.models.regressor import LatentRegressor

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'caev2.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(5), 3)}
TINY = dict(patch_size=(8, 8), width=8, depth=1, heads=2)


def prepare(model=(), target=(), **changes):
    config = experiment.default_config('caev2')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(TINY, **dict(model))
    config.objective.masking.update(num_masked=7, min_block=2)
    config.objective.target.model.update(TINY)
    config.objective.target.update({'projection': 6, **dict(target)})
    config.objective.update(regressor_depth=1, **changes)
    objective = assembly.make_objective(experiment.from_config(config), fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    return objective, jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes)


@pytest.mark.parametrize('loss_on', ['all', pytest.param('hidden', marks=pytest.mark.slow)])
def test_the_loss(loss_on):
    objective, variables = prepare(loss_on=loss_on)
    mask = np.asarray(objective.mask(variables, BATCH, 0))
    visible, hidden = (
        jnp.asarray([np.flatnonzero(row == which) for row in mask]) for which in (False, True)
    )
    params = variables['params']
    regressor = LatentRegressor(objective.encoder, (4, 4), 1, final_norm=False)

    @jax.jit
    def found(variables):
        loss = objective.loss(variables, BATCH, jax.random.key(0), 0)[0]
        seen = objective.encode(params, IMAGES, visible=visible)
        foretold = regressor.apply(
            {'params': params['regressor']}, seen.tokens, visible_ids=visible, hidden_ids=hidden
        )
        taught = objective.target.encode(variables['teacher'], IMAGES)
        return loss, seen, foretold, taught

    loss, seen, foretold, taught = jax.device_get(found(variables))
    norm, head = (jax.tree.map(np.float64, x) for x in (params['norm'], params['head']['linear']))

    def distance(token, target):
        token = token - token.mean()
        token = token / np.sqrt((token**2).mean() + 1e-6) * norm['scale'] + norm['bias']
        token = token @ head['kernel'] + head['bias']
        return 1 - token @ target / np.linalg.norm(token) / np.linalg.norm(target)

    values = []
    for image in range(3):
        targets = np.float64(taught.tokens[image])
        if loss_on == 'all':
            target = np.float64(taught.class_token[image])
            values.append(distance(np.float64(seen.class_token[image]), target))
            for token, place in zip(seen.tokens[image], visible[image], strict=True):
                values.append(distance(np.float64(token), targets[place]))
        for token, place in zip(foretold[image], hidden[image], strict=True):
            values.append(distance(np.float64(token), targets[place]))
    assert len(values) == 3 * (17 if loss_on == 'all' else 7)
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-4)


@pytest.mark.slow
def test_patches_are_morphed_and_the_class_token_is_not():
    constant = {'schedule': 'constant', 'num_merged': 8, 'num_steps': 2}
    objective, variables = prepare(morphing=constant)
    mask = objective.mask(variables, BATCH, 0)
    prediction = np.float64(jax.jit(objective.predictions)(variables, BATCH, mask))
    taught = objective.target.encode(variables['teacher'], IMAGES)
    target = np.float64(taught.class_and_patches)
    key = jax.random.split(jax.random.key(0), 1)[0]
    groups = np.asarray(objective.morphing.groups(key, taught.tokens))
    values = []
    for image in range(3):
        own = np.concatenate([[-1], groups[image]])
        assert len(np.unique(own)) == 9
        for group in own:
            p, t = (x[image][own == group].mean(axis=0) for x in (prediction, target))
            values.append(1 - p @ t / np.linalg.norm(p) / np.linalg.norm(t))
    loss = jax.jit(objective.loss)(variables, BATCH, jax.random.key(0), 0)[0]
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-4)


def test_the_large_configs_are_the_released_recipes():
    for size, width, hidden, depth in (('vitb', 768, 98, 4), ('vits', 384, 49, 1)):
        run = experiment.from_config(configs.load(f'{CONFIG}:{size}'))
        clock = assembly.make_clock(run, 1281167)
        assert (run.data.batch_size, clock.total_steps) == (2048, 300 * 625)
        optimizer, objective = run.optimizer, run.objective
        assert (optimizer.learning_rate, optimizer.scaling) == (1.5e-3, 'none')
        assert (optimizer.beta2, optimizer.clip_norm, optimizer.warmup_epochs) == (0.999, 3, 10)
        assert (run.model.width, run.model.heads, run.model.drop_path) == (width, 12, 0.1)
        assert (objective.masking.num_masked, objective.regressor_depth) == (hidden, depth)
        assert objective.target.projection == 512
        assert run.data.crop.scale == (0.4, 1.0)
        assert run.data.colors == Colors(brightness=0.4, contrast=0.4, saturation=0.4)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model': {'class_token': False}}, 'CAE v2 compares class tokens'),
        ({'target': {'layer': 1, 'projection': None}}, r'target\.layer = 1 must be None'),
    ],
)
def test_what_it_needs_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(**changes)
    assert '\n' not in str(error.value)
