"""data2vec against a plain NumPy loop: the target from the average's blocks, smooth L1."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_schedule

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'data2vec.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(5), 3)}


def prepare(**target):
    """An objective and its variables: the average is that of another network."""
    config = experiment.default_config('data2vec')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=3, heads=2, mask_token=True)
    config.objective.masking.update(num_masked=9, min_block=2)
    config.objective.target.update(target)
    config.train.ema.decay = 0.9
    objective = assembly.make_objective(experiment.from_config(config), fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)['params']
    rng = np.random.default_rng(0)

    def drawn(shapes):
        return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)

    return objective, {'params': drawn(shapes), 'ema': {'encoder': drawn(shapes['encoder'])}}


def normal(tokens, axis):
    centred = tokens - tokens.mean(axis=axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axis, keepdims=True) + 1e-5)


@pytest.mark.parametrize(
    'each, mean',
    [('layer', 'layer'), pytest.param('instance', 'none', marks=pytest.mark.slow)],
)
def test_the_loss(each, mean):
    objective, variables = prepare(layers=2, each=each, mean=mean)
    mask = np.asarray(objective.mask(variables, BATCH, 0))
    assert mask.sum(axis=1).tolist() == [9, 9, 9]

    @jax.jit
    def found(variables):
        loss, _, _ = objective.loss(variables, BATCH, jax.random.key(0), 0)
        blocks = objective.encode(variables['ema'], IMAGES, layers=(1, 2, 3)).layers
        student = objective.encode(variables['params'], IMAGES, mask=mask).tokens
        return loss, blocks, student, objective.targets(variables, IMAGES)

    loss, blocks, student, targets = jax.device_get(found(variables))
    head = jax.tree.map(np.float64, variables['params']['head']['linear'])
    axes = {'layer': 1, 'instance': 0}
    values = []
    for image in range(3):
        last = [np.float64(blocks[number].tokens[image]) for number in (2, 3)]
        target = (normal(last[0], axes[each]) + normal(last[1], axes[each])) / 2
        if mean != 'none':
            target = normal(target, axes[mean])
        np.testing.assert_allclose(targets[image], target, atol=1e-4)
        for token in np.flatnonzero(mask[image]):
            prediction = np.float64(student[image, token]) @ head['kernel'] + head['bias']
            for d in np.abs(prediction - target[token]):
                values.append(d**2 / 4 if d < 2 else d - 1)
    assert len(values) == 3 * 9 * 16
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-4)


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    assert (run.data.batch_size, clock.total_steps) == (2048, 800 * 625)
    np.testing.assert_allclose(rate(10 * 625), 2e-3, rtol=1e-5)
    np.testing.assert_allclose([rate(0), rate(clock.total_steps)], [0, 1e-5], atol=1e-9)
    optimizer, model, objective = run.optimizer, run.model, run.objective
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.05)
    assert optimizer.clip_norm == 3 and set(optimizer.decay_also) == {
        'mask_token',
        'relative_position',
    }
    assert (model.drop_path, model.attention_dropout, model.layer_scale) == (0.25, 0.05, 1e-4)
    assert (model.position, model.relative_position, model.qkv_bias) == ('none', 'shared', 'qv')
    assert (objective.masking.num_masked, objective.masking.min_block) == (120, 16)
    assert (objective.target.layers, objective.distance.beta) == (6, 2)
    assert run.train.ema.decay == 0.9998 and run.train.ema.end_decay is None
    assert run.data.crop.scale == (0.08, 1.0) and run.data.flip == 0.5
    assert run.data.colors == Colors(brightness=0.4, contrast=0.4, saturation=0.4)


def test_more_layers_than_blocks_are_one_sentence():
    with pytest.raises(UserError, match=r'target\.layers = 4: the encoder has only 3') as error:
        prepare(layers=4)
    assert '\n' not in str(error.value)
