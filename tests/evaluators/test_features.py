"""Features of a set of images: every image once, in order, whatever batches and processes."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.evaluators import Features, Part, collect, pool_tokens, pooled, recipe
from mim_jax.evaluators.features import check_finite
from mim_jax.models import Encoded
from tests.evaluators.processes import run_two


def test_pool_tokens():
    tokens = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    encoded = types.SimpleNamespace(tokens=tokens, class_token=tokens[:, 0] + 1)
    np.testing.assert_allclose(pool_tokens(encoded, pool='mean'), tokens.mean(axis=1))
    np.testing.assert_allclose(pool_tokens(encoded, pool='class'), tokens[:, 0] + 1)
    encoded = Encoded(tokens=tokens, class_token=tokens[:, 0] + 1)
    expected = np.concatenate([tokens[:, :1] + 1, tokens], axis=1)
    np.testing.assert_array_equal(pool_tokens(encoded, pool='tokens'), expected)
    bare = Encoded(tokens=tokens, registers=tokens)
    np.testing.assert_array_equal(pool_tokens(bare, pool='tokens'), tokens)
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


def feature_fn(batch):
    x = batch['images'].reshape(len(batch['images']), -1).astype(np.float32)
    return {
        Part('mean'): x * [1, 2],
        Part('class'): x * [3, 4, 5],
        Part('mean', 1): x * [6],
        Part('class', 1): x * [7],
    }


@pytest.mark.parametrize('size', [1, 4, 8, 32])
def test_every_image_once(size):
    parts = collect(feature_fn, batches(21, size=size))
    numbers = np.delete(np.arange(21), 5)
    for pool, blocks, factors in (
        ('mean', 1, [1, 2]),
        ('class', 1, [3, 4, 5]),
        ('both', 1, [3, 4, 5, 1, 2]),
        ('mean', 2, [6, 1, 2]),
        ('class', 2, [7, 3, 4, 5]),
        ('both', 2, [7, 3, 4, 5, 1, 2]),
    ):
        features = pooled(parts, (recipe(pool, blocks=blocks),))
        np.testing.assert_array_equal(features.rows, numbers[:, None] * factors)
        np.testing.assert_array_equal(features.numbers, numbers)
        np.testing.assert_array_equal(features.labels, numbers % 3)
        assert features.rows.dtype == np.float32
    several = pooled(parts, (recipe('class'), recipe('mean'), recipe('mean', blocks=2)))
    rows = several.select(np.array([0, 2])).further
    np.testing.assert_array_equal(rows[0], [[0, 0], [2, 4]])
    np.testing.assert_array_equal(rows[1], [[0, 0, 0], [12, 2, 4]])
    unlabelled = collect(feature_fn, batches(21, size=size, labels=False))
    assert pooled(unlabelled, (recipe('both'),)).labels is None


def test_no_images():
    with pytest.raises(UserError, match='no images'):
        collect(feature_fn, [])


def test_rows_of_a_sharded_array():
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))

    def sharded(batch):
        return jax.device_put(feature_fn(batch), place)

    for name, features in collect(sharded, batches(21, size=8)).items():
        plain = collect(feature_fn, batches(21, size=8))[name]
        jax.tree.map(np.testing.assert_array_equal, vars(features), vars(plain))


def test_tokens_keep_their_dtype():
    tokens = np.arange(24).reshape(2, 3, 4).astype('bfloat16')
    batch = next(iter(batches(2, size=2)))
    kept = collect(lambda _: {Part('tokens'): tokens}, [batch])[Part('tokens')]
    assert kept.rows.dtype == 'bfloat16' and kept.rows.shape == (2, 3, 4)


def test_features_that_are_not_finite_are_one_sentence():
    rows = np.ones((3000, 2), np.float32)
    good = Features(rows, np.arange(3000, dtype=np.int32))
    check_finite(good, evaluator='kNN', split='test')
    bad = dataclasses.replace(good, further=(np.where(good.numbers[:, None] > 2998, np.nan, 1),))
    with pytest.raises(UserError, match='kNN evaluator got 1 features of test images .* not fini'):
        check_finite(bad, evaluator='kNN', split='test')
    inf = dataclasses.replace(good, rows=np.full((4, 2, 2), np.inf).astype('bfloat16'))
    with pytest.raises(UserError, match='got 4 features'):
        check_finite(inf, evaluator='kNN', split='test')


def test_gathered_is_in_the_order_of_the_numbers():
    features = Features(np.eye(3, dtype=np.float32), np.array([4, 1, 2], np.int32))
    gathered = features.gathered()
    np.testing.assert_array_equal(gathered.rows, np.eye(3)[[1, 2, 0]])
    assert gathered.numbers.tolist() == [1, 2, 4] and gathered.labels is None


TWO_PROCESSES = """
from jax.sharding import NamedSharding, PartitionSpec
import dataclasses
from mim_jax.evaluators import Part, collect, features
part = Part('mean')
from tests.evaluators.test_features import batches
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
place = NamedSharding(mesh, PartitionSpec('data'))
embed = jax.jit(lambda x: {part: x.reshape(len(x), -1) * 2.0}, out_shardings=place)
def feature_fn(batch):
    return embed(jax.make_array_from_process_local_data(place, batch['images']))
mine = collect(feature_fn, list(batches(21, size=4))[index::2])[part]
features.GATHERED_BYTES = 24  # three rows of each process at once
both = dataclasses.replace(mine, further=(np.c_[mine.rows, mine.rows].astype(np.float64),))
gathered = both.gathered()
found = gathered.rows, gathered.numbers, gathered.labels, *gathered.further
empty = features.gather(np.zeros((0, 2), np.float32)).shape
uneven = features.gather(np.arange(3 * index)[:, None] % 2 == 0).tolist()
result = mine.numbers.tolist(), [x.tolist() for x in found], list(empty), uneven
"""


def test_two_processes_share_the_images():
    numbers = [n for n in range(21) if n != 5]
    results = run_two(TWO_PROCESSES)
    assert sorted(results[0][0] + results[1][0]) == numbers
    for _, gathered, empty, uneven in results:
        assert gathered[:3] == [[[2.0 * n] for n in numbers], numbers, [n % 3 for n in numbers]]
        assert gathered[3] == [[2.0 * n, 2.0 * n] for n in numbers]
        assert empty == [0, 2] and uneven == [[True], [False], [True]]
