"""The mesh, batches on it, and what is said when they do not fit."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax import sharding
from mim_jax.errors import UserError
from mim_jax.sharding import MeshConfig


def mesh(**axes):
    return sharding.make_mesh(MeshConfig(**axes))


def test_minus_one_takes_the_remaining_devices():
    assert dict(mesh(data=-1, fsdp=4).shape) == {'data': 2, 'fsdp': 4, 'tensor': 1}


def test_one_process_may_use_fewer_devices():
    assert mesh(data=2).size == 2


@pytest.mark.parametrize(
    ('axes', 'said'),
    [
        (dict(data=16), 'needs 16 devices, but there are 8'),
        (dict(data=-1, fsdp=3), 'does not divide the 8 devices'),
    ],
)
def test_meshes_that_do_not_fit(axes, said):
    with pytest.raises(UserError, match=said):
        mesh(**axes)


def test_only_data_crosses_between_slices_of_tpus():
    devices = [types.SimpleNamespace(platform='tpu', slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match='data=1 is not divisible by the 2 slices of TPUs'):
        sharding.make_mesh(MeshConfig(data=-1, fsdp=8), devices)


def test_chips_of_a_mesh_are_a_block_of_the_slice():
    devices = [
        types.SimpleNamespace(
            platform='tpu', device_kind='TPU v5 lite', coords=(i % 2, i // 2, 0), core_on_chip=0
        )
        for i in range(8)
    ]
    with pytest.raises(UserError, match='fsdp=3, tensor=1 uses 3 of the devices, and these are no'):
        sharding.make_mesh(MeshConfig(data=1, fsdp=3), devices)


@pytest.mark.parametrize('axes', [dict(data=-1, fsdp=-1), dict(data=0)])
def test_impossible_axes(axes):
    with pytest.raises(ValueError, match='must be positive'):
        MeshConfig(**axes)


@pytest.mark.parametrize(
    ('rule', 'said'),
    [
        (('kernel(', ()), r"'kernel\(' is no expression"),
        (('kernel', ('fsdp', 'model')), 'axes of data, fsdp, tensor'),
        (('kernel', ('fsdp', 'tensor+fsdp')), 'each at most once'),
        (('kernel', ('',)), 'none or axes'),
    ],
)
def test_impossible_rules(rule, said):
    with pytest.raises(ValueError, match=said):
        MeshConfig(rules=(rule,))


def test_batches_must_divide_over_mesh_and_accumulation():
    m = mesh(data=2, fsdp=4)
    sharding.check_batch(16, m, accumulation=2)
    with pytest.raises(UserError, match='use for example 16'):
        sharding.check_batch(12, m, accumulation=2)


def test_put_batch_splits_over_data_and_fsdp():
    m = mesh(data=2, fsdp=2, tensor=2)
    images = np.arange(8 * 2 * 2 * 3, dtype=np.uint8).reshape(8, 2, 2, 3)
    put = sharding.put_batch({'images': images}, m)['images']
    np.testing.assert_array_equal(put, images)
    assert {shard.data.shape[0] for shard in put.addressable_shards} == {2}


def test_put_tree_gives_every_device_its_part():
    m = mesh(data=1, fsdp=8)
    place = jax.sharding.NamedSharding(m, P('fsdp'))
    put = sharding.put_tree({'x': np.arange(16.0)}, {'x': place})['x']
    np.testing.assert_array_equal(put, np.arange(16.0))
    assert put.sharding == place
