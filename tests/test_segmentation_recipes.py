"""The recipes of segmentation: every argument builds, the published ones as published.

The facts are those of microsoft/unilm, beit2/semantic_segmentation: its configs for ADE20K at 512
pixels, its LayerDecayOptimizerConstructor, and mmseg 0.11 (ade20k.py, schedule_160k.py).
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import config, experiment
from mim_jax.program import Program

CONFIG = Path(__file__).parent.parent / 'configs' / 'segmentation.py'
SIZES = ('vits', 'vitb', 'vitl', 'vitb_linear', 'embedded')


def program(size):
    run = experiment.from_config(config.load(f'{CONFIG}:{size}'))
    fields = run.data.source.assumed_fields()
    return Program.make(run, epoch_examples=20_210, fields=fields, devices=jax.devices()[:1])


@pytest.mark.parametrize('size', SIZES)
def test_every_size_builds(size):
    made = program(size)
    objective, batch = made.objective, made.abstract_batch
    assert objective.num_classes == (2 if size == 'embedded' else 150)
    side = 48 if size == 'embedded' else 512
    assert batch[f'images_{objective.map}'].shape[1:] == (side, side)
    assert ('state' in made.abstract_state.variables) == (size != 'vitb_linear')
    assert made.run.optimizer.frozen == (('encoder',) if size == 'vitb_linear' else ())


@pytest.mark.parametrize(
    ('size', 'width', 'blocks', 'rate', 'decay', 'drop_path'),
    [
        ('vitb', 768, (4, 6, 8, 12), 5e-5, 0.75, 0.15),
        ('vitl', 1024, (8, 12, 16, 24), 4e-5, 0.9, 0.2),
    ],
)
def test_the_released_values(size, width, blocks, rate, decay, drop_path):
    made = program(size)
    run, head = made.run, made.objective.head
    assert (head.channels, head.pool_scales, head.dropout) == (width, (1, 2, 3, 6), 0.1)
    assert (head.auxiliary_channels, head.auxiliary_weight) == (256, 0.4)
    assert head.taps(run.model.depth) == blocks  # out_indices count from 0
    assert (run.model.width, run.model.drop_path) == (width, drop_path)
    assert (run.model.relative_position, run.model.qkv_bias) == ('per_block', 'qv')
    assert not run.model.final_norm and not run.model.mask_token
    optimizer = run.optimizer
    assert (optimizer.learning_rate, optimizer.layer_decay) == (rate, decay)
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.05)
    assert optimizer.clip_norm is None
    assert (run.train.total_steps, run.data.batch_size) == (160_000, 16)
    np.testing.assert_allclose(made.step.schedule(1500), rate * (1 - 1500 / 160_000), rtol=1e-5)
    np.testing.assert_allclose(made.step.schedule(750), rate * (1 - 750 / 160_000) / 2, rtol=1e-5)
    crop = run.data.crop
    assert (crop.mode, crop.factor, crop.longest, crop.max_share) == (
        'scaled',
        (0.5, 2.0),
        4.0,
        0.75,
    )
    assert (crop.interpolation, run.data.flip) == ('linear', 0.5)
    assert made.objective.distortion.probability == 0.5 and made.objective.mean_over == 'all'
    sliding = run.eval.segmentation._sliding(type('Judged', (), {'views': made.views}))
    assert (sliding.window, sliding.stride) == ((512, 512), (341, 341))


def test_decay_goes_by_the_number_of_dimensions_and_layers_from_the_top():
    """There one-dimensional parameters and biases are not decayed, and all else is: its list names
    `cls_token`, but the parameter is `backbone.cls_token`."""
    made = program('vitb')
    params = made.abstract_state.variables['params']
    decayed = made.objective.weight_decayed(params, also=made.run.optimizer.decay_also)
    assert decayed['encoder']['class_token'] and decayed['encoder']['patch_embed']['kernel']
    assert all(jax.tree.leaves(decayed['encoder']['blocks']['relative_position']))
    assert not decayed['encoder']['blocks']['layer_scale1']
    layers = made.objective.layers(params)
    assert layers['encoder']['class_token'] == 0
    assert layers['encoder']['blocks']['norm1']['scale'].tolist() == list(range(1, 13))
    assert set(jax.tree.leaves(layers['head'])) == {13}
