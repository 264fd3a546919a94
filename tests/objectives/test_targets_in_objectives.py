"""Every target in a token-wise objective, and where the objective says what it needs."""

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.program import Program


def make(config, *assignments):
    config = configs.override(config, experiment.Experiment, list(assignments))
    return experiment.from_config(config)


def loss_and_target(run, **collections):
    objective = assembly.make_objective(run, fields=image_fields(10))
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = objective.init(jax.random.key(1), images)
    for name, of in collections.items():
        variables[name] = variables[of]
    batch = {'images': images, 'keys': keys.per_example(jax.random.key(2), 2)}
    loss = objective.loss(variables, batch, jax.random.key(3), 0)[0]
    return float(loss), np.asarray(objective.targets(variables, images))


def test_hog(tiny_config):
    run = make(tiny_config('simmim'), ('objective.target.name', 'hog'))
    loss, target = loss_and_target(run)
    assert target.shape == (2, 16, 2 * 2 * 3 * 9)
    assert np.isfinite(loss)


@pytest.mark.slow
def test_average_of_the_student_on_whole_images(tiny_config):
    config = tiny_config('mae', ema={'decay': 0.9})
    run = make(config, ('objective.target.name', 'ema'), ('objective.target.layer', '1'))
    loss, target = loss_and_target(run, ema='params')
    objective = assembly.make_objective(run, fields=image_fields(10))
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    variables = objective.init(jax.random.key(1), images)
    whole = objective.encoder.apply(
        {'params': variables['params']['encoder']}, objective.inputs.normalize(images), layers=(1,)
    )
    np.testing.assert_allclose(target, whole.layers[1].tokens, atol=1e-5)
    assert np.isfinite(loss)


def test_average_needs_its_decay(tiny_config):
    run = make(tiny_config('mae'), ('objective.target.name', 'ema'))
    with pytest.raises(UserError, match='config.train.ema.decay is none'):
        Program.make(run, epoch_examples=64, fields=image_fields(10))


def test_mask_token_is_asked_for(tiny_config):
    run = make(tiny_config('simmim'), ('model.mask_token', 'false'))
    with pytest.raises(UserError, match='config.model.mask_token'):
        assembly.make_objective(run, fields=image_fields(10))


def test_classification_without_labels(tiny_config):
    run = make(tiny_config('classification'))
    with pytest.raises(UserError, match='needs labels'):
        Program.make(run, epoch_examples=64, fields=image_fields())


def test_weight_decay_and_layers(tiny_config):
    run = make(
        tiny_config('simmim'),
        ('model.relative_position', 'both'),
        ('model.layer_scale', '0.1'),
        ('model.qkv_bias', 'qv'),
    )
    objective = assembly.make_objective(run, fields=image_fields(10))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
    decayed = objective.weight_decayed(params)
    names = {
        '/'.join(part.key for part in path)
        for path, value in jax.tree_util.tree_leaves_with_path(decayed)
        if value
    }
    assert names == {
        'encoder/patch_embed/kernel',
        'encoder/blocks/attention/qkv/kernel',
        'encoder/blocks/attention/out/kernel',
        'encoder/blocks/mlp/fc1/kernel',
        'encoder/blocks/mlp/fc2/kernel',
        'head/linear/kernel',
    }
    layers = objective.layers(params)
    assert layers['encoder']['patch_embed']['kernel'] == 0
    assert layers['encoder']['mask_token'] == 0
    assert layers['encoder']['blocks']['mlp']['fc1']['kernel'].tolist() == [1, 2]
    assert layers['encoder']['final_norm']['scale'] == 3
    assert layers['head']['linear']['kernel'] == 3
