"""ColorMAE against a plain NumPy loop, its masks made by SciPy."""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.clock import Clock
from mim_jax.data import image_fields
from mim_jax.errors import UserError

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'colormae.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(5), 3)}


def prepare(**changes):
    config = experiment.default_config('colormae')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.objective.update(changes)
    run = experiment.from_config(config)
    return assembly.make_objective(run, fields=image_fields(10), clock=Clock(3, 30, 100))


def mask_by_hand(color):
    """Hidden patches [3,16]: all but those of the 4 largest numbers of the filtered noise."""
    mask = np.ones((3, 16), bool)
    for row, key in zip(mask, keys.named(BATCH['keys'], 'mask'), strict=True):
        white = np.float64(jax.random.normal(key, (20, 20)))
        red = gaussian_filter(white, 2.0)
        green = gaussian_filter(white, 0.5) - red
        noise = {'red': red, 'blue': white - red, 'green': green, 'purple': white - green}[color]
        row[np.argsort(-noise[8:12, 8:12].reshape(-1))[:4]] = False
    return mask


def test_the_loss_is_that_of_mae_on_these_masks():
    objective = prepare()
    shapes = jax.eval_shape(objective.init, jax.random.key(2), IMAGES)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    mask = mask_by_hand('green')
    np.testing.assert_array_equal(objective.mask(variables, BATCH, 0), mask)

    @jax.jit
    def found(mask):
        loss, _, _ = objective.loss(variables, BATCH, jax.random.key(0), 0)
        return loss, objective.predict(variables, BATCH, mask)

    loss, prediction = found(mask)
    mean, std = (np.array(x) for x in (objective.inputs.mean, objective.inputs.std))
    images, squares = (np.float64(IMAGES) - mean) / std, []
    for image, token in zip(*np.nonzero(mask), strict=True):
        row, column = (8 * x for x in divmod(token, 4))
        patch = images[image, row : row + 8, column : column + 8].reshape(-1)
        patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        squares.append(((np.float64(prediction[image, token]) - patch) ** 2).mean())
    np.testing.assert_allclose(loss, np.mean(squares), rtol=1e-5)


def test_colours_follow_one_another():
    """100 steps: green, from 50 blue, from 80 red."""
    objective = prepare(later=('blue', 'red'), later_percent=(50.0, 80.0))
    mask = jax.jit(lambda step: objective.mask({}, BATCH, step))
    colors = {0: 'green', 49: 'green', 50: 'blue', 79: 'blue', 80: 'red', 99: 'red'}
    for step, color in colors.items():
        np.testing.assert_array_equal(mask(step), mask_by_hand(color))


def test_the_recipe_is_maes_with_other_masks():
    run = experiment.from_config(configs.load(str(CONFIG)))
    mae = experiment.from_config(configs.load(str(CONFIG.with_name('mae.py'))))
    assert run.optimizer == mae.optimizer and run.data == mae.data and run.model == mae.model
    assert (run.data.batch_size, run.train.total_epochs) == (4096, 800)
    assert run.objective.decoder == mae.objective.decoder and run.objective.target.normalize
    assert run.objective.masking.color == 'green' and run.objective.masking.count((14, 14)) == 147


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'later': ('pink',), 'later_percent': (50.0,)}, "later has 'pink'"),
        ({'later': ('blue',)}, 'one percentage for each of the 1 colours'),
        ({'later': ('blue', 'red'), 'later_percent': (50.0, 20.0)}, 'in ascending order'),
    ],
)
def test_impossible_options_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(**changes)
    assert '\n' not in str(error.value)
