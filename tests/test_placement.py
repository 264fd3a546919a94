"""Where arrays live: by their paths and shapes, and by the rules of a config."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax import placement, sharding
from mim_jax.errors import UserError
from mim_jax.sharding import MeshConfig


def mesh(**axes):
    return sharding.make_mesh(MeshConfig(**axes))


def array(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def placed(state, config):
    """An abstract state with its shardings, on the mesh of a config."""
    shardings = placement.state_shardings(state, sharding.make_mesh(config), config)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


@pytest.mark.parametrize(
    ('path', 'shape', 'spec'),
    [
        ('params/encoder/blocks/mlp/fc1/kernel', (12, 64, 256), P(None, 'fsdp', 'tensor')),
        ('params/encoder/blocks/mlp/fc2/kernel', (12, 256, 64), P(None, 'tensor', 'fsdp')),
        (
            'params/encoder/blocks/attention/qkv/kernel',
            (12, 64, 3, 4, 16),
            P(None, 'fsdp', None, 'tensor', None),
        ),
        (
            'params/encoder/blocks/attention/out/kernel',
            (12, 4, 16, 64),
            P(None, 'tensor', None, 'fsdp'),
        ),
        (
            'params/decoder/blocks/cross_attention/key/kernel',
            (8, 96, 4, 16),
            P(None, 'fsdp', 'tensor', None),
        ),
        (
            'params/decoder/blocks/cross_attention/out/kernel',
            (8, 4, 16, 64),
            P(None, 'tensor', None, 'fsdp'),
        ),
        ('params/encoder/patch_embed/kernel', (768, 64), P('fsdp', None)),
        ('params/encoder/blocks/norm1/scale', (12, 64), P()),
        ('opt_state/0/mu/encoder/blocks/mlp/fc1/kernel', (12, 64, 256), P(None, 'fsdp', 'tensor')),
        ('params/encoder/blocks/odd', (12, 101, 103), P(None, None, None)),
    ],
)
def test_large_arrays_are_split_and_small_ones_are_not(path, shape, spec):
    result = placement.partition(path, shape, mesh(data=2, fsdp=2, tensor=2), min_shard_size=4096)
    assert result == spec


STATE = {
    'params': {'head': {'kernel': array(64, 96), 'bias': array(96)}},
    'mu': {'head': {'kernel': array(64, 96), 'bias': array(96)}},
}


def specs(*rules):
    config = MeshConfig(data=2, fsdp=2, tensor=2, min_shard_size=4096, rules=rules)
    return jax.tree.map(lambda x: x.sharding.spec, placed(STATE, config))


def test_the_first_rule_for_an_array_places_it_and_its_moments():
    assert specs()['params']['head'] == {'kernel': P(None, 'fsdp'), 'bias': P()}
    by_rule = specs(('head/bias$', ('fsdp+tensor',)), ('mu/', ()), ('head', ('tensor', None)))
    assert by_rule == {
        'params': {'head': {'kernel': P('tensor', None), 'bias': P(('fsdp', 'tensor'))}},
        'mu': {'head': {'kernel': P(), 'bias': P(('fsdp', 'tensor'))}},
    }


@pytest.mark.parametrize(
    ('rules', 'said'),
    [
        ([('haed', ('fsdp',))], "'haed' places nothing"),
        ([('head', ()), ('bias', ('fsdp',))], "'bias' places nothing"),
        (
            [('head', (None, 'fsdp'))],
            r"'head' is for \S+/head/bias \[96\], but places 2 dimensions",
        ),
    ],
)
def test_rules_that_do_not_fit_are_told(rules, said):
    with pytest.raises(UserError, match=said):
        specs(*rules)


def test_a_rule_that_does_not_divide_is_told():
    config = MeshConfig(data=1, fsdp=8, rules=(('bias', ('fsdp',)),))
    with pytest.raises(
        UserError, match=r'100 does not divide by fsdp = 8; split another dimension'
    ):
        placed({'bias': array(100)}, config)


def odd(**changes):
    """What is said of a state whose large kernel has sides that 4 does not divide."""
    state = {
        'odd': {'kernel': array(99, 101)},
        'mlp': {'fc1': {'kernel': array(64, 402)}},
        'even': array(64, 128),
        'small': array(63),
    }
    config = MeshConfig(**{'data': -1, 'min_shard_size': 64, **changes})
    return placement.said_of_whole(placed(state, config), config)


def test_large_arrays_that_no_axis_splits_are_told():
    kept = (('odd/kernel', ()),)
    told = odd(fsdp=4)
    # Beside a quarter of 64 * 402 and of 64 * 128, and 63.
    assert round(99 * 101 / (99 * 101 + 64 * 402 / 4 + 64 * 128 / 4 + 63), 2) == 0.54
    assert (
        '54% of what a chip holds' in told and 'odd/kernel [99, 101]' in told and 'fsdp=4' in told
    )
    assert odd(fsdp=4, rules=kept) is None
    assert odd(fsdp=1) is None
    assert 'mlp/fc1/kernel [64, 402]' in odd(tensor=4)  # made to be split by columns
    assert odd(tensor=2) is None  # the others are not for this axis


def test_little_that_no_axis_splits_is_not_told():
    config = MeshConfig(data=1, fsdp=8, min_shard_size=64)
    state = {'odd': array(99), 'even': array(64, 128)}
    assert placement.said_of_whole(placed(state, config), config) is not None
    state['more'] = array(64, 1280)
    assert placed(state, config)['odd'].sharding.is_fully_replicated
    assert placement.said_of_whole(placed(state, config), config) is None
