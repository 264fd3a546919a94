import math
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from mim_jax import config
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, KNN, knn, pool_tokens


def make_split(seed, count, *, width=12, num_classes=4, noise=1.5):
    """Noisy class centres, as 'images' [n,1,1,D] uint8 whose pixels are the features."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(num_classes, width))
    labels = generator.integers(num_classes, size=count).astype(np.int32)
    x = centres[labels] + noise * generator.normal(size=(count, width))
    return np.clip(40 * x + 128, 0, 255).astype(np.uint8)[:, None, None, :], labels


def feature_fn(images):
    return jax.numpy.asarray(images, np.float32).reshape(len(images), -1) - 128.0


def batches(images, labels, *, size, pad=True):
    for start in range(0, len(images), size):
        x, y = images[start : start + size], labels[start : start + size]
        valid = np.arange(size) < len(x)
        if pad and len(x) < size:  # garbage, so that a padded row that counts is seen
            x = np.concatenate([x, np.full((size - len(x), *x.shape[1:]), 99, np.uint8)])
            y = np.concatenate([y, np.zeros(size - len(y), np.int32)])
            yield {'images': x, 'labels': y, 'valid': valid}
        else:
            yield {'images': x, 'labels': y}


def reference(train, test, *, k, temperature, num_classes, top):
    """Wu et al. section 3.4, one test image and one neighbour at a time, in float64."""
    (train_x, train_y), (test_x, test_y) = train, test
    correct = 0
    for x, label in zip(test_x.reshape(len(test_x), -1).astype(float) - 128, test_y, strict=True):
        scored = []
        for neighbour, y in zip(
            train_x.reshape(len(train_x), -1).astype(float) - 128, train_y, strict=True
        ):
            cosine = sum(x * neighbour) / math.sqrt(sum(x * x) * sum(neighbour * neighbour))
            scored.append((cosine, y))
        votes = [0.0] * num_classes
        for cosine, y in sorted(scored, reverse=True)[:k]:
            votes[y] += math.exp(cosine / temperature)
        ranking = sorted((c for c in range(num_classes) if votes[c]), key=lambda c: -votes[c])
        correct += label in ranking[:top]
    return correct / len(test_x)


@pytest.mark.parametrize('k, temperature', [(1, 0.07), (5, 0.07), (20, 1.0), (10, 0.002)])
def test_equals_a_plain_loop(k, temperature):
    train, test = make_split(0, 150), make_split(1, 61)
    evaluator = KNN(k=k, temperature=temperature)
    result = dict(
        evaluator.run(feature_fn, batches(*train, size=32), batches(*test, size=16), num_classes=4)
    )
    expected = reference(train, test, k=k, temperature=temperature, num_classes=4, top=1)
    assert result == pytest.approx({'top1': expected})
    assert 0.4 < expected < 1  # not a trivial case


def test_several_k_and_top5():
    train, test = make_split(0, 150, num_classes=9), make_split(1, 40, num_classes=9)
    evaluator = KNN(k=(20, 3), temperature=0.1)
    result = dict(
        evaluator.run(feature_fn, batches(*train, size=50), batches(*test, size=40), num_classes=9)
    )
    assert list(result) == ['top1', 'top5', 'top1_k3', 'top5_k3']
    for name, k, top in (('top1', 20, 1), ('top5', 20, 5), ('top1_k3', 3, 1), ('top5_k3', 3, 5)):
        expected = reference(train, test, k=k, temperature=0.1, num_classes=9, top=top)
        assert result[name] == pytest.approx(expected), name


def test_limits_use_the_first_images():
    train, test = make_split(0, 150), make_split(1, 61)
    calls = []

    def counting(images):
        calls.append(len(images))
        return feature_fn(images)

    evaluator = KNN(k=7, max_train=70, max_test=20)
    (top1,) = evaluator.run(
        counting, batches(*train, size=32), batches(*test, size=20), num_classes=4
    )
    first = [x[:70] for x in train], [x[:20] for x in test]
    assert top1[1] == pytest.approx(reference(*first, k=7, temperature=0.07, num_classes=4, top=1))
    assert calls == [32, 32, 32, 20]


@pytest.mark.parametrize('train_rows, test_rows', [(7, 3), (64, 100), (1, 1), (100, 2)])
def test_chunks_do_not_change_the_neighbours(train_rows, test_rows):
    generator = np.random.default_rng(3)
    train = generator.normal(size=(50, 6)).astype(np.float32)
    test = generator.normal(size=(21, 6)).astype(np.float32)
    labels = np.arange(50, dtype=np.int32)
    similarities, ids = knn.nearest(
        train, labels, test, k=9, train_rows=train_rows, test_rows=test_rows
    )
    expected = test @ train.T
    order = np.argsort(-expected, axis=1)[:, :9]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(expected, order, axis=1), rtol=1e-5, atol=1e-6
    )


def test_more_neighbours_than_training_images():
    train, test = make_split(0, 6), make_split(1, 10)
    (top1,) = KNN(k=20).run(
        feature_fn, batches(*train, size=6), batches(*test, size=10), num_classes=4
    )
    assert top1[1] == pytest.approx(
        reference(train, test, k=20, temperature=0.07, num_classes=4, top=1)
    )


def test_test_rows_stay_on_their_devices():
    """No collective in the ranking: each device serves its own test rows."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('rows',))
    assert mesh.size == 8

    def abstract(shape, dtype, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    by_rows = (None, 'rows')
    best = abstract((2, 16, 5), np.float32, *by_rows), abstract((2, 16, 5), np.int32, *by_rows)
    chunk = abstract((32, 8), np.float32), abstract((32,), np.int32), abstract((32,), bool)
    queries = abstract((2, 16, 8), np.float32, *by_rows)
    text = knn._merge_chunk.lower(best, queries, chunk, mesh=mesh).compile().as_text()
    assert not any(name in text for name in ('all-gather', 'all-reduce', 'all-to-all'))


def test_runs_inside_another_mesh():
    train, test = make_split(0, 40), make_split(1, 16)
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        (top1,) = KNN(k=5).run(
            feature_fn, batches(*train, size=20), batches(*test, size=16), num_classes=4
        )
    assert top1[1] == pytest.approx(
        reference(train, test, k=5, temperature=0.07, num_classes=4, top=1)
    )


def test_empty_split_and_wrong_labels_are_user_errors():
    train, test = make_split(0, 20), make_split(1, 10)
    with pytest.raises(UserError, match='no test images'):
        list(KNN().run(feature_fn, batches(*train, size=10), [], num_classes=4))
    with pytest.raises(UserError, match='no training images'):
        list(KNN().run(feature_fn, [], batches(*test, size=10), num_classes=4))
    with pytest.raises(UserError, match='2 classes'):
        list(
            KNN().run(feature_fn, batches(*train, size=10), batches(*test, size=10), num_classes=2)
        )


def test_config_section():
    assert config.build(EVALUATORS['knn'], {'k': (10, 20), 'pool': 'class'}, path='eval.knn') == (
        KNN(k=(10, 20), pool='class')
    )
    for section in ({'k': 0}, {'temperature': 0.0}, {'pool': 'max'}, {'max_train': 0}, {'kk': 3}):
        with pytest.raises(UserError, match='eval.knn'):
            config.build(KNN, section, path='eval.knn')


def test_pool_tokens():
    tokens = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    encoded = types.SimpleNamespace(tokens=tokens, class_token=tokens[:, 0] + 1)
    np.testing.assert_allclose(pool_tokens(encoded, pool='mean'), tokens.mean(axis=1))
    np.testing.assert_allclose(pool_tokens(encoded, pool='class'), tokens[:, 0] + 1)
    with pytest.raises(UserError, match='class token'):
        pool_tokens(types.SimpleNamespace(tokens=tokens, class_token=None), pool='class')


TWO_PROCESSES = """
import sys
import jax
index, port = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(f'localhost:{port}', 2, index)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
sys.path.insert(0, sys.argv[3])
from test_knn import KNN, batches, make_split
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec('data'))
embed = jax.jit(lambda x: x.reshape(len(x), -1).astype('float32') - 128, out_shardings=sharding)
def feature_fn(images):
    return embed(jax.make_array_from_process_local_data(sharding, images))
splits = make_split(0, 150, num_classes=9), make_split(1, 61, num_classes=9)
def share(split, size):
    return list(batches(*split, size=size))[index::2]
result = KNN(k=(20, 3), max_train=110).run(
    feature_fn, share(splits[0], 20), share(splits[1], 8), num_classes=9
)
print('RESULT', sorted(result))
"""


def test_two_processes_equal_one(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-c', TWO_PROCESSES]
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    folder = os.path.dirname(__file__)
    running = [
        subprocess.Popen(
            [*command, str(index), str(port), folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    splits = make_split(0, 150, num_classes=9), make_split(1, 61, num_classes=9)
    one = KNN(k=(20, 3), max_train=110).run(
        feature_fn, batches(*splits[0], size=40), batches(*splits[1], size=16), num_classes=9
    )
    expected = f'RESULT {sorted(one)}'
    for output in outputs:
        assert expected in output, output[-2000:]
