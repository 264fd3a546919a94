"""Layer decay per parameter against a table written by hand: the factor of every learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import experiment
from mim_jax.data import image_fields
from mim_jax.program import Program
from mim_jax.sharding import path_name

# Of BEiT's fine-tuning code at a depth of 3 and a decay of 0.5: 0.5 ** (4 - layer), with layer 0
# for patches, tokens and absolute positions, i for block i, and 4 for all that follows the blocks
# and for the relative table that they share.
FACTORS = {
    'encoder/patch_embed/kernel': 0.0625,
    'encoder/patch_embed/bias': 0.0625,
    'encoder/class_token': 0.0625,
    'encoder/registers': 0.0625,
    'encoder/mask_token': 0.0625,
    'encoder/position/patches': 0.0625,
    'encoder/position/class_token': 0.0625,
    'encoder/pre_norm/scale': 0.0625,
    'encoder/pre_norm/bias': 0.0625,
    'encoder/relative_position/patches': 1.0,
    'encoder/relative_position/class_token': 1.0,
    'encoder/final_norm/scale': 1.0,
    'encoder/final_norm/bias': 1.0,
    'head/norm/scale': 1.0,
    'head/norm/bias': 1.0,
    'head/linear/kernel': 1.0,
    'head/linear/bias': 1.0,
}
BLOCKS = (0.125, 0.25, 0.5)
OF_A_BLOCK = (
    'norm1/scale',
    'norm1/bias',
    'attention/qkv/kernel',
    'attention/qkv/bias',
    'attention/out/kernel',
    'attention/out/bias',
    'layer_scale1',
    'norm2/scale',
    'norm2/bias',
    'mlp/fc1/kernel',
    'mlp/fc1/bias',
    'mlp/fc2/kernel',
    'mlp/fc2/bias',
    'layer_scale2',
    'relative_position/patches',
    'relative_position/class_token',
)


@pytest.mark.parametrize('scan', [True, False])
def test_factors_per_parameter(tiny_config, scan):
    config = tiny_config('classification')
    config.model.update(
        depth=3,
        num_registers=1,
        mask_token=True,
        position='learned',
        relative_position='both',
        pre_norm=True,
        final_norm=True,
        layer_scale=0.1,
        scan=scan,
    )
    config.optimizer.update(
        learning_rate=1.0,
        scaling='none',
        schedule='constant',
        weight_decay=0.0,
        layer_decay=0.5,
        eps=1e-12,
    )
    config.mesh.data = 1
    run = experiment.from_config(config)
    program = Program.make(run, epoch_examples=64, fields=image_fields(10))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), program.abstract_state.variables['params'])
    gradients = jax.tree.map(jnp.ones_like, params)
    optimizer = program.step.optimizer
    # The first step of Adam is minus the learning rate wherever the gradient is positive.
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    found = {path_name(p): -np.asarray(u) for p, u in jax.tree_util.tree_leaves_with_path(updates)}
    expected = {name: np.array(factor) for name, factor in FACTORS.items()}
    expected |= {f'encoder/blocks/{name}': np.array(BLOCKS) for name in OF_A_BLOCK}
    assert found.keys() == expected.keys()
    for name, factor in found.items():
        wanted = expected[name].reshape((-1,) + (1,) * (factor.ndim - 1))
        np.testing.assert_allclose(factor, np.broadcast_to(wanted, factor.shape), rtol=1e-5)
