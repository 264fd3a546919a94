"""MaskAlign against plain NumPy loops over images, levels and tokens, on grids that are not square.

The hidden states of student and teacher are taken from the encoder, which has its own tests; the
draw of the mask, whitening, fusion, heads and loss are done by hand.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys, panels
from mim_jax import config as configs
from mim_jax.data import image_fields
from mim_jax.errors import UserError

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 24, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(2), 3)}
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
VISIBLE, LEVELS = 6, 2
# 4 x 3 patches for the student; this teacher has a table for 5 x 4 and sees 4 x 3 of 7 pixels.
OTHER_GRID = {'patch_size': (7, 7), 'position': 'learned', 'grid': (5, 4)}


def prepare(**changes):
    """The objective on 4 x 3 patches, 6 of them visible, with random parameters everywhere."""
    config = experiment.default_config('maskalign')
    config.data.update(image_size=(32, 24), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=3, heads=2)
    config.objective.update(levels=LEVELS)
    config.objective.masking.ratio = 0.5
    target = config.objective.target
    target.update(mean=tuple(MEAN), std=tuple(STD))
    target.model.update(patch_size=(8, 8), width=12, depth=3, heads=2)
    config.train.total_steps = 1
    given = [(name.replace('__', '.'), str(value)) for name, value in changes.items()]
    run = experiment.from_config(configs.override(config, experiment.Experiment, given))
    return assembly.make_objective(run, fields=image_fields())


def drawn(objective):
    """Variables of which no parameter has a special value."""
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    # A teacher whose attention tells patches apart.
    variables['teacher']['blocks']['attention']['qkv']['kernel'] *= 12
    return variables


def gather(encoded, block, image):
    layer = encoded.layers[block]
    return np.float64(np.concatenate([layer.class_token[image][None], layer.tokens[image]]))


def teacher_by_hand(objective, variables):
    """Hidden states of every block and the last attention, from the teacher's own images."""
    images, size = IMAGES, objective.target.input_size
    if size is not None:
        images = jax.image.resize(images, (3, *size, 3), 'cubic').clip(0, 1)
    blocks = range(1, objective.target.model.depth + 1)
    apply = jax.jit(lambda v, x: objective.target.model.apply(v, x, layers=blocks, attention=(3,)))
    return apply({'params': variables['teacher']}, (images - MEAN) / STD)


def visible_by_hand(attention):
    """The permutation by Gumbel noise: draws one after the other in proportion to the weights."""
    visible = []
    for image in range(3):
        importance = np.float64(attention[image]).mean(axis=0)
        assert importance.max() > 20 * importance.min()  # else any weights would do
        key = keys.named(BATCH['keys'], 'mask')[image]
        noise = np.float64(jax.random.gumbel(key, (12,)))
        visible.append(np.argsort(-(np.log(importance) + noise))[:VISIBLE])
    return np.array(visible)


def prediction_by_hand(objective, variables, visible):
    """[image][level] -> [1 + visible, D']."""
    depth = objective.encoder.depth
    apply = jax.jit(
        lambda v, x, ids: objective.encoder.apply(v, x, visible_ids=ids, layers=range(1, depth + 1))
    )
    mean, std = np.array(objective.inputs.mean), np.array(objective.inputs.std)
    params = variables['params']
    encoded = apply({'params': params['encoder']}, (IMAGES - mean) / std, visible)
    linear = jax.tree.map(np.float64, params['align']['heads']['linear'])
    predictions = []
    for image in range(3):
        states = [gather(encoded, block, image) for block in range(1, depth + 1)]
        levels = []
        for level in range(LEVELS):
            if objective.fusion == 'none':
                mixed = states[depth - LEVELS + level]
            else:
                weights = np.float64(params['align']['fusion'][level])
                mixed = sum(w * state for w, state in zip(weights, states, strict=True))
            levels.append(mixed @ linear['kernel'][level] + linear['bias'][level])
        predictions.append(levels)
    return predictions


def target_by_hand(taught, visible, depth=3):
    """[image][level] -> [1 + visible, D'], each token with mean 0 and variance 1."""
    targets = []
    for image in range(3):
        levels = []
        for block in range(depth - LEVELS + 1, depth + 1):
            state = gather(taught, block, image)[[0, *(1 + visible[image])]]
            centred = state - state.mean(axis=1, keepdims=True)
            levels.append(centred / np.sqrt(state.var(axis=1, keepdims=True) + 1e-5))
        targets.append(levels)
    return targets


def smooth_l1(x, y):
    d = np.abs(x - y)
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


def loss_of(objective, variables, key=None):
    key = jax.random.key(3) if key is None else key
    return float(jax.jit(objective.loss)(variables, BATCH, key, 0)[0])


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'objective__fusion': 'none'},
        {'objective__fusion': 'sum', 'model__depth': 2},
        {
            'objective__target__input_size': (28, 21),
            **{f'objective__target__model__{name}': value for name, value in OTHER_GRID.items()},
        },
    ],
    ids=['linear', 'none', 'sum of fewer blocks', 'another grid'],
)
def test_the_loss(changes):
    objective = prepare(**changes)
    variables = drawn(objective)
    taught = teacher_by_hand(objective, variables)
    visible = visible_by_hand(taught.attention[3])
    mask = np.asarray(jax.jit(objective.mask)(variables, BATCH, 0))
    assert [set(np.flatnonzero(~row)) for row in mask] == [set(row) for row in visible]
    prediction = prediction_by_hand(objective, variables, visible)
    target = target_by_hand(taught, visible)
    total = 0.0
    for level in range(LEVELS):
        losses = [
            smooth_l1(prediction[image][level][token], target[image][level][token])
            for image in range(3)
            for token in range(1 + VISIBLE)  # the class token and every kept patch weigh the same
        ]
        total += 1 / LEVELS * 2 * np.mean(losses)
    np.testing.assert_allclose(loss_of(objective, variables), total, rtol=2e-5)


@pytest.mark.slow
def test_morphed_the_visible_patches_are_matched_on_group_means():
    changes = {'schedule': 'constant', 'num_merged': 2, 'num_steps': 1}
    objective = prepare(**{f'objective__morphing__{k}': v for k, v in changes.items()})
    variables, key = drawn(objective), jax.random.key(3)
    taught = teacher_by_hand(objective, variables)
    visible = np.sort(visible_by_hand(taught.attention[3]), axis=1)
    prediction = prediction_by_hand(objective, variables, visible)
    target = target_by_hand(taught, visible)
    # The tokens that are grouped: all levels side by side, without the class token.
    tokens = np.array([np.concatenate([x[1:] for x in levels], axis=1) for levels in target])
    draw = jax.random.split(key, 1)[0]
    groups = np.asarray(objective.morphing.groups(draw, np.float32(tokens)))
    assert all(len(np.unique(row)) == VISIBLE - 2 for row in groups)
    losses = []
    for image in range(3):
        for level in range(LEVELS):
            p, t = prediction[image][level], target[image][level]
            losses.append(smooth_l1(p[0], t[0]))
            for token in range(VISIBLE):
                members = 1 + np.flatnonzero(groups[image] == groups[image, token])
                losses.append(smooth_l1(p[members].mean(axis=0), t[members].mean(axis=0)))
    assert len(losses) == 3 * LEVELS * (1 + VISIBLE)
    np.testing.assert_allclose(loss_of(objective, variables, key), 2 * np.mean(losses), rtol=2e-5)
    # Not compiled as one: it then rounds as what it is compared with does.
    heat, mask, shown = objective.pictures(variables, BATCH, key, 0)['groups']
    importance = np.asarray(taught.attention[3]).mean(axis=1)
    np.testing.assert_allclose(heat.values, importance, atol=1e-6)
    for image in range(3):
        hidden = np.flatnonzero(mask.values[image])
        assert set(hidden) == set(range(12)) - set(visible[image])
        # A hidden patch is alone; visible ones are together where their tokens are.
        for i, place in enumerate(visible[image]):
            together = np.flatnonzero(shown.values[image] == shown.values[image, place])
            np.testing.assert_array_equal(
                together, visible[image][groups[image] == groups[image, i]]
            )
        assert len(np.unique(shown.values[image])) == len(hidden) + VISIBLE - 2


def test_no_gradient_flows_into_teacher_and_final_norm():
    objective = prepare()
    gradient = jax.jit(jax.grad(lambda v: objective.loss(v, BATCH, jax.random.key(3), 0)[0]))(
        drawn(objective)
    )

    def largest(tree):
        return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))

    assert largest(gradient['teacher']) == 0
    encoder = dict(gradient['params']['encoder'])
    assert largest(encoder.pop('final_norm')) == 0
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(encoder)) > 0
    align = gradient['params']['align']
    assert (np.abs(align['fusion']) > 0).all()  # every block takes part in every level
    assert (np.abs(align['heads']['linear']['bias']) > 0).any(axis=1).all()


def test_masks_may_be_random():
    objective = prepare(objective__masking__name='random', objective__masking__ratio=0.5)
    variables = drawn(objective)
    mask = np.asarray(jax.jit(objective.mask)(variables, BATCH, 0))
    noise = [jax.random.uniform(key, (12,)) for key in keys.named(BATCH['keys'], 'mask')]
    hidden = [set(np.argsort(row)[: 12 - VISIBLE].tolist()) for row in noise]
    assert [set(np.flatnonzero(row)) for row in mask] == hidden
    assert np.isfinite(loss_of(objective, variables))
    (shown,) = jax.jit(objective.pictures)(variables, BATCH, jax.random.key(3), 0)['mask']
    assert isinstance(shown, panels.Mask)


@pytest.mark.parametrize(
    'changes, said',
    [
        ({'model__class_token': False}, 'MaskAlign aligns class tokens'),
        ({'objective__target__model__class_token': False}, 'MaskAlign aligns class tokens'),
        ({'objective__target__layer': 2}, 'layer and config.objective.target.projection to None'),
        ({'objective__target__projection': 8}, 'config.objective.target.projection to None'),
        ({'objective__levels': 4}, 'config.objective.levels = 4: the teacher has 3 blocks'),
        ({'objective__levels': 0}, 'config.objective.levels=0: must be at least 1'),
        ({'model__depth': 2}, r"'linear' needs as many blocks in the student \(2\) as in the tea"),
        ({'model__depth': 4, 'objective__fusion': 'none'}, r"'none' needs .* \(4\) .* \(3\)"),
        ({'objective__masking__ratio': 0.95}, 'masking.ratio = 0.95: of 12 patches 0 would stay'),
        ({'objective__target__name': 'pixels'}, 'the options here are teacher'),
        (
            {
                'objective__morphing__schedule': 'random',
                'objective__morphing__grouping__name': 'superpixels',
            },
            "'superpixels' is formed on the whole grid of patches",
        ),
        (
            {
                'objective__morphing__schedule': 'random',
                'objective__morphing__grouping__name': 'layerwise',
            },
            "'layerwise' merges tokens inside the network",
        ),
        (
            {'objective__morphing__schedule': 'constant', 'objective__morphing__num_merged': 7},
            'num_merged = 7: an image has only 6 tokens',
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        prepare(**changes)


@pytest.mark.parametrize('scale, teacher', [('vitb', 768), ('vitl', 1024)])
def test_the_papers_recipe(scale, teacher):
    run = experiment.from_config(configs.load(f'{CONFIGS / "maskalign.py"}:{scale}'))
    objective = assembly.make_objective(run, fields=image_fields(1000))
    assert objective.num_visible == 58
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), images)
    align, depth = shapes['params']['align'], run.model.depth
    assert align['fusion'].shape == (5, depth)
    assert align['heads']['linear']['kernel'].shape == (5, run.model.width, teacher)
    taught = jax.eval_shape(objective.teach, shapes, images)
    assert set(taught.layers) == set(range(depth - 4, depth + 1))
    assert taught.layers[depth].tokens.shape == (1, 196, teacher)
    # The table that CLIP's file holds is of 224 pixels: 16 x 16 patches of 14 for the large one.
    model = dataclasses.replace(objective.target.model, grid=None)
    seen = jax.eval_shape(objective.target.input, images)
    side = 224 // model.patch_size[0]
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert params['params']['position']['patches'].shape == (side, side, teacher)
    encoded = jax.eval_shape(model.apply, params, seen)
    assert encoded.tokens.shape == (1, 196, teacher)
    clock = assembly.make_clock(run, 1281167)
    assert clock.total_steps == pytest.approx(200 * 1281167 / 1024, abs=1)
