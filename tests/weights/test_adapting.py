"""Encoders for other encoders: the same function, and tables by an independent rule."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.models.vit import ViT
from mim_jax.weights import adapting, native

MODEL = ViT(patch_size=(4, 4), width=16, depth=2, heads=2, layer_scale=0.1, qkv_bias='qv')
SIZE, LARGER = (16, 20), (24, 28)  # grids 4x5 and 6x7
TOLERANCE = dict(rtol=1e-5, atol=2e-5)
# Encoders whose function the second can have too.
LIKE = [
    ({}, {}),
    ({'position': 'learned'}, {'position': 'learned'}),
    ({'position': 'sincos'}, {'position': 'learned'}),
    ({'position': 'none', 'relative_position': 'shared'}, {'relative_position': 'shared'}),
    ({'position': 'none', 'relative_position': 'shared'}, {'relative_position': 'per_block'}),
    ({'position': 'none', 'relative_position': 'shared'}, {'relative_position': 'both'}),
    ({'position': 'none', 'relative_position': 'per_block'}, {'relative_position': 'per_block'}),
    ({'position': 'none', 'relative_position': 'per_block'}, {'relative_position': 'both'}),
    ({'position': 'none', 'relative_position': 'both'}, {'relative_position': 'both'}),
    ({'position': 'none', 'relative_position': 'both'}, {'relative_position': 'per_block'}),
    ({'class_token': False, 'position': 'learned'}, {}),
    ({'num_registers': 3}, {}),
    ({'relative_position': 'none'}, {'relative_position': 'per_block'}),
]


def model_of(**fields):
    return dataclasses.replace(MODEL, **fields)


@functools.cache
def parameters(model, size=SIZE, channels=3, seed=0):
    struct = jax.ShapeDtypeStruct((1, *size, channels), 'float32')
    params = jax.device_get(model.init(jax.random.key(seed), struct)['params'])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params)


def expected_of(model, size=SIZE, channels=3):
    struct = jax.ShapeDtypeStruct((1, *size, channels), 'float32')
    return jax.eval_shape(lambda: model.init(jax.random.key(0), struct))['params']


def adapted(old, new, *, size=SIZE, params=None, stated=True):
    params = parameters(old) if params is None else params
    fields = dataclasses.asdict(old) if stated else {}
    return adapting.adapt(fields, params, new, expected_of(new, size), what='W')


def filled(found, new, size):
    """The adapted parameters, the rest fresh."""
    struct = jax.ShapeDtypeStruct((1, *size, 3), 'float32')
    fresh = native.flatten(jax.device_get(new.init(jax.random.key(5), struct)['params']))
    return native.unflatten(fresh | native.flatten(found.params))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, images):
    return model.apply({'params': params}, images)


@pytest.mark.parametrize('size', [SIZE, LARGER], ids=['same grid', 'another'])
@pytest.mark.parametrize(('old', 'new'), LIKE)
def test_features_are_those_of_the_source(old, new, size):
    """On another grid a network interpolates its table as it runs: the same as doing so before."""
    new = model_of(**{**old, **new})
    old = model_of(**old)
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = adapted(old, new, size=size)
    wanted = apply(old, parameters(old), images)
    given = apply(new, filled(found, new, size), images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), given, wanted)
    assert size == LARGER or not found.resized
    if old == new and size == SIZE:
        assert set(found.taken) == set(native.flatten(parameters(old)))


def cubic(x):
    """Keys' kernel with a = -0.75, as PyTorch has it."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def linear(x):
    return max(0.0, 1 - abs(x))


def resized(table, grid, kernel):
    """[h,w,D] on another grid by loops: pixel centres are aligned; beyond the edge is the edge."""
    out = np.zeros((*grid, table.shape[2]))
    reach = range(-2, 4)
    for i, j in itertools.product(*map(range, grid)):
        y, x = ((k + 0.5) * n / m - 0.5 for k, n, m in zip((i, j), table.shape, grid, strict=False))
        for dy, dx in itertools.product(reach, reach):
            row, column = int(np.floor(y)) + dy, int(np.floor(x)) + dx
            clipped = np.clip(row, 0, len(table) - 1), np.clip(column, 0, table.shape[1] - 1)
            out[i, j] += kernel(y - row) * kernel(x - column) * table[clipped]
    return out


def test_tables_on_another_grid_by_loops():
    old = model_of(position='learned', relative_position='both')
    new = model_of(position='learned', relative_position='per_block')
    found = adapted(old, new, size=LARGER)
    before, after = native.flatten(parameters(old)), native.flatten(found.params)
    np.testing.assert_allclose(
        after['position/patches'], resized(before['position/patches'], (6, 7), cubic), atol=1e-5
    )
    np.testing.assert_array_equal(after['position/class_token'], before['position/class_token'])
    shared = resized(before['relative_position/patches'], (11, 13), linear)
    for block in range(2):
        own = resized(before['blocks/relative_position/patches'][block], (11, 13), linear)
        np.testing.assert_allclose(
            after['blocks/relative_position/patches'][block], shared + own, atol=1e-5
        )
    assert set(found.resized) == {
        'position/patches from the grid 4x5 to 6x7 (bicubic)',
        'relative_position/patches from the grid 4x5 to 6x7 (bilinear)',
        'blocks/relative_position/patches from the grid 4x5 to 6x7 (bilinear)',
    }
    assert found.made == (
        "relative_position/class_token added to every block's own",
        "relative_position/patches added to every block's own",
    )
    assert not found.fresh and not found.left_out


def test_a_stored_grid_is_that_of_the_table():
    """With model.grid the table stays at it, whatever the images' size."""
    old = model_of(position='learned')
    new = model_of(position='learned', grid=(4, 5))
    found = adapted(old, new, size=LARGER)
    assert not found.resized
    table = parameters(old)['position']['patches']
    np.testing.assert_array_equal(found.params['position']['patches'], table)


def test_antialiasing_is_the_models_choice():
    old = model_of(position='learned')
    new = model_of(position='learned', position_resize='bicubic_antialias')
    (said,) = adapted(old, new, size=LARGER).resized
    assert said.endswith('(bicubic_antialias)')


def test_what_a_fine_tuned_network_has_and_has_not():
    old = model_of(mask_token=True, num_registers=2)
    new = model_of(final_norm=False, class_token=False)
    found = adapted(old, new)
    left = {'mask_token', 'class_token', 'registers', 'final_norm/scale', 'final_norm/bias'}
    assert set(found.left_out) == left and not found.fresh
    back = adapted(new, old, params=found.params)
    assert set(back.fresh) == left and not back.left_out
    clip = {**parameters(MODEL), 'projection': {'kernel': np.zeros((16, 4))}}
    assert adapted(MODEL, MODEL, params=clip).left_out == ('projection/kernel',)


@pytest.mark.parametrize('dtype', ['float64', 'float16'])
def test_all_parameters_come_out_in_float32(dtype):
    old = model_of(position='none', relative_position='shared')
    new = model_of(relative_position='both', position='none')
    params = jax.tree.map(lambda x: x.astype(dtype), parameters(old))
    found = adapted(old, new, size=LARGER, params=params)
    assert {x.dtype for x in jax.tree.leaves(found.params)} == {np.dtype('float32')}
    kernel = params['blocks']['mlp']['fc1']['kernel']
    np.testing.assert_array_equal(
        found.params['blocks']['mlp']['fc1']['kernel'], kernel.astype('float32')
    )


def test_weights_that_state_no_fields():
    found = adapted(MODEL, MODEL, stated=False)
    assert not found.fresh and not found.left_out
    with pytest.raises(UserError, match=r'W is of another model: .*attention/out/kernel'):
        adapted(MODEL, model_of(heads=4), stated=False)
    with pytest.raises(UserError, match='lacks blocks/layer_scale1, blocks/layer_scale2'):
        old = model_of(layer_scale=None)
        adapted(old, MODEL, stated=False)
    with pytest.raises(UserError, match='has what the config does not: blocks/layer_scale1'):
        adapted(MODEL, model_of(layer_scale=None), stated=False)


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ({}, {'width': 32}, 'width is 16 there, 32 in the config'),
        ({}, {'depth': 3}, 'depth is 2 there, 3 in the config'),
        ({}, {'heads': 4}, 'heads is 2 there, 4 in the config'),
        ({'patch_size': (2, 4)}, {}, r'patch_size is \[2, 4\] there, \[4, 4\] in the config'),
        ({}, {'mlp_ratio': 2.0}, 'mlp_ratio'),
        ({}, {'layer_scale': None}, 'layer_scale'),
        ({}, {'qkv_bias': 'all'}, 'qkv_bias'),
        ({}, {'activation': 'quick_gelu'}, 'activation'),
        ({}, {'pre_norm': True}, 'pre_norm'),
        ({'position': 'learned'}, {'position': 'sincos'}, "position is 'learned' there"),
        ({'position': 'sincos'}, {'position': 'none'}, "position is 'sincos' there"),
        ({'relative_position': 'shared'}, {'relative_position': 'none'}, "to 'per_block'"),
        ({'relative_position': 'per_block'}, {'relative_position': 'shared'}, "to 'per_block'"),
        ({'num_registers': 2}, {'num_registers': 3}, 'registers'),
    ],
)
def test_another_model_is_one_sentence(old, new, said):
    old, new = model_of(**old), model_of(**new)
    with pytest.raises(UserError, match=f'^W .*{said}') as told:
        adapted(old, new)
    assert '\n' not in str(told.value)


def test_other_channels_and_no_encoder():
    with pytest.raises(UserError, match='W sees 1 channels, the images of the config have 3'):
        adapted(MODEL, MODEL, params=parameters(MODEL, channels=1))
    with pytest.raises(UserError, match='W holds no encoder'):
        adapted(MODEL, MODEL, params={'blocks': {'x': np.zeros(3)}})
