"""Segmentation: the loss by a loop, running averages, frozen encoders, what is told to a user."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import config as configs
from mim_jax import data, experiment, keys, sharding
from mim_jax.data import Field, image_fields
from mim_jax.errors import UserError
from mim_jax.models.segmenters import SEGMENTERS, LinearSegmenter, UPerNet
from mim_jax.program import Program

FIELDS = (*image_fields(), Field('mask', 'map', dtype='uint8', num_classes=3))


def make(tiny_config, *, head='linear', options=None, fields=FIELDS, train=None, **objective):
    config = tiny_config('segmentation', **(train or {}))
    config.objective.map = 'mask'
    config.objective.head = configs.option(SEGMENTERS, head, **(options or {}))
    config.objective.update(objective)
    config.model.depth = 3
    config.data.batch_size = 8
    config.mesh.data = 1
    run = experiment.from_config(config)
    return Program.make(run, epoch_examples=64, fields=fields)


def make_batch(seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.choice(np.array([0, 1, 2, 255], np.uint8), (8, 32, 32))
    labels[0] = 255  # an image without any
    images = generator.uniform(size=(8, 32, 32, 3)).astype(np.float32)
    return {'images': images, 'images_mask': labels, 'keys': keys.per_example(jax.random.key(1), 8)}


def entropies(logits, labels):
    """-log of the probability of every labelled pixel's class, one pixel at a time."""
    found = []
    for place in np.ndindex(labels.shape):
        if labels[place] != 255:
            scores = logits[place].astype(np.float64)
            found.append(np.log(np.exp(scores).sum()) - scores[labels[place]])
    return found


def resized(x, size):
    """[B,h,w,C] at a larger size, between pixel centres, in a loop."""
    out = np.zeros((len(x), *size, x.shape[-1]))
    for y, z in np.ndindex(size):
        weights = []
        for i, n, m in ((y, x.shape[1], size[0]), (z, x.shape[2], size[1])):
            place = max((i + 0.5) * n / m - 0.5, 0)
            low = int(place)
            weights.append(((low, 1 - place + low), (min(low + 1, n - 1), place - low)))
        for row, a in weights[0]:
            for column, b in weights[1]:
                out[:, y, z] += a * b * x[:, row, column]
    return out


@pytest.mark.parametrize('mean_over', ['labelled', 'all'])
@pytest.mark.parametrize('head', ['linear', 'upernet'])
def test_the_loss_equals_a_loop_over_pixels(tiny_config, head, mean_over):
    options = {'dropout': 0.0, 'channels': 8, 'auxiliary_channels': 4} if head == 'upernet' else {}
    program = make(tiny_config, head=head, options=options, mean_over=mean_over)
    objective, batch = program.objective, make_batch()
    variables = jax.jit(objective.init)(jax.random.key(0), batch['images'])

    @jax.jit
    def both(variables, batch):
        loss, metrics, state = objective.loss(variables, batch, jax.random.key(2), 0)
        predicted, again = objective.predict(variables, batch['images'], keys=batch['keys'])
        return loss, metrics, state, [x for _, x in predicted], again

    loss, metrics, state, logits, again = jax.device_get(both(variables, batch))
    labels = batch['images_mask'].astype(int)
    logits = [resized(x, (32, 32)) for x in logits]
    assert [x.shape for x in logits] == [(8, 32, 32, 3)] * (2 if head == 'upernet' else 1)
    expected = sum(w * sum(entropies(x, labels)) for w, x in zip((1.0, 0.4), logits, strict=False))
    count = (labels != 255).sum()
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5)
    assert loss.weight == (count if mean_over == 'labelled' else labels.size)
    right = (logits[0].argmax(axis=-1) == labels).sum() / count
    np.testing.assert_allclose(metrics['pixel_accuracy'], right, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert objective.needs_whole_batch == bool(state) == (head == 'upernet')


def test_evaluation_uses_running_averages_and_training_moves_them(tiny_config):
    program = make(tiny_config, head='upernet', options={'channels': 8, 'auxiliary_channels': 4})
    objective, batch = program.objective, make_batch()
    variables = jax.jit(objective.init)(jax.random.key(0), batch['images'])
    step = jax.jit(lambda v, b: objective.loss(v, b, jax.random.key(2), 0)[2])
    logits = jax.jit(objective.pixel_logits)
    state = step(variables, batch)
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), state, variables['state'])
    assert all(jax.tree.leaves(moved))
    before = logits(variables, batch['images'])
    after = logits({**variables, 'state': state}, batch['images'])
    assert np.abs(before - after).max() > 1e-3
    # One image's prediction does not depend on the others, as it would by the batch's statistics.
    alone = logits({**variables, 'state': state}, batch['images'][:1])
    np.testing.assert_allclose(alone, after[:1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mean_over', ['labelled', 'all'])
def test_microbatches_add_up_to_the_batch(tiny_config, mean_over):
    """Though one of them has more labelled pixels than the other."""
    batch = {k: v for k, v in make_batch().items() if k != 'keys'}
    batch['images'] = (255 * batch['images']).astype(np.uint8)
    batch['images_mask'][::2, :20] = 255
    seen = []
    for accumulation in (1, 2):
        program = make(tiny_config, mean_over=mean_over, train={'accumulation': accumulation})
        step = program.trace().lower().compile()
        state, metrics = step(program.init({}), sharding.put_batch(batch, program.mesh))
        seen.append({name: float(metrics[name]) for name in ('loss', 'grad_norm')})
    assert seen[1] == pytest.approx(seen[0], rel=1e-5) and seen[0]['grad_norm'] > 0
    with pytest.raises(UserError, match='needs its batch in one piece'):
        make(tiny_config, head='upernet', train={'accumulation': 2})


def test_layers_and_what_is_decayed(tiny_config):
    program = make(tiny_config, head='upernet', options={'channels': 8})
    params = program.abstract_state.variables['params']
    layers = program.objective.layers(params)
    assert set(jax.tree.leaves(layers['head'])) == {4}  # depth 3: the pyramid too
    assert layers['encoder']['patch_embed']['kernel'] == 0
    decayed = program.objective.weight_decayed(params)['head']
    assert decayed['decoder']['fuse']['conv']['kernel'] and decayed['pyramid']['double']['kernel']
    assert not decayed['pyramid']['norm']['scale'] and not decayed['decoder']['classify']['bias']


def test_dropout_takes_whole_channels_of_each_image(tiny_config):
    program = make(tiny_config, options={'dropout': 0.5})
    objective, batch = program.objective, make_batch()
    variables = jax.jit(objective.init)(jax.random.key(0), batch['images'])
    # Every channel of a token is its own class's score.
    width, maps = 6, np.ones((8, 2, 2, 6), np.float32)
    head = {'params': {'classify': {'kernel': jnp.eye(width), 'bias': jnp.zeros(width)}}}
    options = {'classes': width, 'dtype': 'float32'}
    ((_, seen),), _ = LinearSegmenter(dropout=0.5).apply(
        head, [maps], keys=batch['keys'], **options
    )
    assert set(np.unique(seen)) == {0.0, 2.0}
    assert (seen == seen[:, :1, :1]).all() and len(np.unique(seen[:, 0, 0], axis=0)) > 3
    ((_, plain),), _ = LinearSegmenter(dropout=0.5).apply(head, [maps], **options)
    assert (plain == 1).all() and 'head' in variables['params']


def test_mistakes_are_one_sentence(tiny_config):
    unnumbered = (*image_fields(), Field('mask', 'map'))
    many = (*image_fields(), Field('mask', 'map', num_classes=300))
    for fields, said in (
        (image_fields(), "needs the map 'mask'"),
        (unnumbered, 'how many classes'),
        (many, 'has 300 classes'),
    ):
        with pytest.raises(UserError, match=said):
            make(tiny_config, fields=fields)
    with pytest.raises(UserError, match='names the block 9'):
        make(tiny_config, head='upernet', options={'blocks': (1, 2, 3, 9)})
    with pytest.raises(ValueError, match='blocks'):
        UPerNet(blocks=(1, 2))


def test_distortion_is_a_transform_of_the_training_view_alone(tiny_config):
    program = make(tiny_config)
    distortion = dataclasses.replace(program.objective.distortion, probability=0.5)
    objective = dataclasses.replace(program.objective, distortion=distortion)
    assert program.views['images'].transforms == ()
    views = objective.views(program.run.data)
    assert views['images'].transforms == (distortion,)
    assert data.eval_views(program.run.data, views)['images'].transforms == ()
