"""Features of a set of images: every image once, in order, whatever batches and processes."""

import types

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.evaluators import Features, collect, pool_tokens, pooled
from tests.evaluators.processes import run_two


def test_pool_tokens():
    tokens = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    encoded = types.SimpleNamespace(tokens=tokens, class_token=tokens[:, 0] + 1)
    np.testing.assert_allclose(pool_tokens(encoded, pool='mean'), tokens.mean(axis=1))
    np.testing.assert_allclose(pool_tokens(encoded, pool='class'), tokens[:, 0] + 1)
    with pytest.raises(UserError, match='class token'):
        pool_tokens(types.SimpleNamespace(tokens=tokens, class_token=None), pool='class')


def batches(count, *, size, labels=True):
    """Images of one pixel, their number; image 5 cannot be read, and the last batch is padded."""
    for start in range(0, count, size):
        numbers = np.arange(start, start + size)
        valid = (numbers < count) & (numbers != 5)
        yield {
            'images': np.where(valid, numbers, 99).astype(np.uint8)[:, None, None, None],
            'index': np.where(numbers < count, numbers, -1).astype(np.int32),
            'valid': valid,
        } | ({'labels': (numbers % 3).astype(np.int32)} if labels else {})


def feature_fn(images):
    x = images.reshape(len(images), -1).astype(np.float32)
    return {'mean': x * [1, 2], 'class': x * [3, 4, 5]}


@pytest.mark.parametrize('size', [1, 4, 8, 32])
def test_every_image_once(size):
    parts = collect(feature_fn, batches(21, size=size))
    numbers = np.delete(np.arange(21), 5)
    for pool, factors in (('mean', [1, 2]), ('class', [3, 4, 5]), ('both', [3, 4, 5, 1, 2])):
        features = pooled(parts, pool=pool)
        np.testing.assert_array_equal(features.rows, numbers[:, None] * factors)
        np.testing.assert_array_equal(features.numbers, numbers)
        np.testing.assert_array_equal(features.labels, numbers % 3)
        assert features.rows.dtype == np.float32
    assert (
        pooled(collect(feature_fn, batches(21, size=size, labels=False)), pool='both').labels
        is None
    )


def test_no_images():
    with pytest.raises(UserError, match='no images'):
        collect(feature_fn, [])


def test_rows_of_a_sharded_array():
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))

    def sharded(images):
        return jax.device_put(feature_fn(images), place)

    for name, features in collect(sharded, batches(21, size=8)).items():
        plain = collect(feature_fn, batches(21, size=8))[name]
        jax.tree.map(np.testing.assert_array_equal, vars(features), vars(plain))


def test_gathered_is_in_the_order_of_the_numbers():
    features = Features(np.eye(3, dtype=np.float32), np.array([4, 1, 2], np.int32))
    gathered = features.gathered()
    np.testing.assert_array_equal(gathered.rows, np.eye(3)[[1, 2, 0]])
    assert gathered.numbers.tolist() == [1, 2, 4] and gathered.labels is None


TWO_PROCESSES = """
from jax.sharding import NamedSharding, PartitionSpec
from mim_jax.evaluators import collect
from tests.evaluators.test_features import batches
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
place = NamedSharding(mesh, PartitionSpec('data'))
embed = jax.jit(lambda x: {'mean': x.reshape(len(x), -1) * 2.0}, out_shardings=place)
def feature_fn(images):
    return embed(jax.make_array_from_process_local_data(place, images))
mine = collect(feature_fn, list(batches(21, size=4))[index::2])['mean']
result = mine.numbers.tolist(), [x.tolist() for x in vars(mine.gathered()).values()]
"""


def test_two_processes_share_the_images():
    numbers = [n for n in range(21) if n != 5]
    results = run_two(TWO_PROCESSES)
    assert sorted(results[0][0] + results[1][0]) == numbers
    for _, gathered in results:
        assert gathered == [[[2.0 * n] for n in numbers], numbers, [n % 3 for n in numbers]]
