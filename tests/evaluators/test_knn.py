"""kNN against a plain loop and scikit-learn; its chunks, devices and processes."""

import math

import jax
import numpy as np
import pytest

from mim_jax import config, experiment
from mim_jax.errors import UserError
from mim_jax.evaluators import EVALUATORS, KNN, knn
from mim_jax.evaluators.features import unit
from tests.evaluators.processes import run_two
from tests.evaluators.splits import make_split


def reference(train, test, *, k, temperature, num_classes, top):
    """Wu et al. section 3.4, one test image and one neighbour at a time, in float64."""
    correct = 0
    for x, number, label in zip(test.rows.astype(float), test.numbers, test.labels, strict=True):
        scored = []
        for neighbour, other, y in zip(
            train.rows.astype(float), train.numbers, train.labels, strict=True
        ):
            if test is train and other == number:
                continue
            cosine = sum(x * neighbour) / math.sqrt(sum(x * x) * sum(neighbour * neighbour))
            scored.append((cosine, y))
        votes = [0.0] * num_classes
        for cosine, y in sorted(scored, reverse=True)[:k]:
            votes[y] += math.exp(cosine / temperature)
        ranking = sorted((c for c in range(num_classes) if votes[c]), key=lambda c: -votes[c])
        correct += label in ranking[:top]
    return correct / len(test.rows)


@pytest.mark.parametrize('k, temperature', [(1, 0.07), (5, 0.07), (20, 1.0), (10, 0.002)])
def test_equals_a_plain_loop(k, temperature):
    train, test = make_split(0, 150), make_split(1, 61)
    result = dict(KNN(k=k, temperature=temperature).run(train, test, num_classes=4))
    expected = reference(train, test, k=k, temperature=temperature, num_classes=4, top=1)
    assert result == pytest.approx({'top1': expected})
    assert 0.4 < expected < 1  # not a trivial case


def test_several_k_and_top5():
    train, test = make_split(0, 150, num_classes=9), make_split(1, 40, num_classes=9)
    result = dict(KNN(k=(20, 3), temperature=0.1).run(train, test, num_classes=9))
    assert list(result) == ['top1', 'top5', 'top1_k3', 'top5_k3']
    for name, k, top in (('top1', 20, 1), ('top5', 20, 5), ('top1_k3', 3, 1), ('top5_k3', 3, 5)):
        expected = reference(train, test, k=k, temperature=0.1, num_classes=9, top=top)
        assert result[name] == pytest.approx(expected), name


def test_equals_scikit_learn_in_one_pass():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = make_split(0, 700, num_classes=9), make_split(1, 200, num_classes=9)
    result = dict(KNN(k=(10, 20, 100, 200), temperature=0.2).run(train, test, num_classes=9))
    for k in (10, 20, 100, 200):
        classifier = KNeighborsClassifier(
            k, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.2)
        ).fit(train.rows.astype(float), train.labels)
        expected = classifier.score(test.rows.astype(float), test.labels)
        assert result['top1' if k == 10 else f'top1_k{k}'] == pytest.approx(expected), k


def test_without_test_images_each_is_judged_by_the_others():
    train = make_split(0, 150)
    # A twin is a neighbour, for only the image itself is left out.
    train.rows[90] = train.rows[30]
    expected = reference(train, train, k=7, temperature=0.07, num_classes=4, top=1)
    (top1,) = KNN(k=7).run(train, None, num_classes=4)
    assert top1 == ('top1', pytest.approx(expected)) and 0.4 < expected < 1
    _, ids = knn.nearest(
        unit(train.rows),
        train.numbers,
        unit(train.rows),
        k=200,
        train_ids=train.numbers,
        excluded=train.numbers,
        train_rows=32,
        test_rows=5,
    )
    assert ids[30, 0] == train.numbers[90] and ids[90, 0] == train.numbers[30]
    for number, others in zip(train.numbers, ids[:, :149], strict=True):
        assert sorted([number, *others]) == sorted(train.numbers)


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
    (top1,) = KNN(k=20).run(train, test, num_classes=4)
    expected = reference(train, test, k=20, temperature=0.07, num_classes=4, top=1)
    assert top1[1] == pytest.approx(expected)


def test_test_rows_stay_on_their_devices():
    """No collective in the ranking: each device serves its own test rows."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('rows',))
    assert mesh.size == 8

    def abstract(shape, dtype, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    by_rows = (None, 'rows')
    best = abstract((2, 16, 5), np.float32, *by_rows), abstract((2, 16, 5), np.int32, *by_rows)
    ids = abstract((32,), np.int32)
    chunk = abstract((32, 8), np.float32), ids, ids, abstract((32,), bool)
    queries = abstract((2, 16, 8), np.float32, *by_rows), abstract((2, 16), np.int32, *by_rows)
    text = knn._merge_chunk.lower(best, queries, chunk, mesh=mesh).compile().as_text()
    assert not any(name in text for name in ('all-gather', 'all-reduce', 'all-to-all'))


def test_runs_inside_another_mesh():
    train, test = make_split(0, 40), make_split(1, 16)
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        (top1,) = KNN(k=5).run(train, test, num_classes=4)
    expected = reference(train, test, k=5, temperature=0.07, num_classes=4, top=1)
    assert top1[1] == pytest.approx(expected)


def test_empty_split_and_wrong_labels_are_user_errors():
    train, test = make_split(0, 20), make_split(1, 10)
    empty = train.select(np.zeros(20, bool))
    with pytest.raises(UserError, match='no test image that can be read'):
        list(KNN().run(train, empty, num_classes=4))
    with pytest.raises(UserError, match='no training image that can be read'):
        list(KNN().run(empty, test, num_classes=4))
    with pytest.raises(UserError, match='2 classes'):
        list(KNN().run(train, test, num_classes=2))


def test_config_section():
    config_file = experiment.default_config('mae')
    config_file.eval.knn.k = (10, 20)
    assert experiment.from_config(config_file).eval.knn.all_k == (10, 20)
    assert config.build(EVALUATORS['knn'], {'k': (10, 20), 'pool': 'both'}, path='eval.knn') == (
        KNN(k=(10, 20), pool='both')
    )
    for section in (
        {'k': 0},
        {'k': (5, 20, 5)},
        {'temperature': 0.0},
        {'pool': 'max'},
        {'max_train': 0},
        {'kk': 3},
    ):
        with pytest.raises(UserError, match='eval.knn'):
            config.build(KNN, section, path='eval.knn')


def test_features_that_are_not_finite_are_one_sentence():
    train, test = make_split(0, 60), make_split(1, 30)
    test.rows[3, 2] = np.nan
    with pytest.raises(UserError, match='1 features of test images that are not finite'):
        list(KNN().run(train, test, num_classes=4))


TWO_PROCESSES = """
from mim_jax.evaluators import KNN
train, test = (share(make_split(seed, n, num_classes=9)) for seed, n in ((0, 110), (1, 61)))
result = [*KNN(k=(20, 3)).run(train, test, num_classes=9)]
result += KNN(k=5).run(train, None, num_classes=9)
"""


def test_two_processes_equal_one():
    train, test = make_split(0, 110, num_classes=9), make_split(1, 61, num_classes=9)
    expected = [*KNN(k=(20, 3)).run(train, test, num_classes=9)]
    expected += KNN(k=5).run(train, None, num_classes=9)
    for result in run_two(TWO_PROCESSES):
        assert result == [list(pair) for pair in expected]
