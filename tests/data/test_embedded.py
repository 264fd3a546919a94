"""The embedded scenes: pure functions of (split, index), disjoint digits, hard for raw pixels."""

import pickle

import numpy as np
import pytest

from mim_jax.data import DataConfig, find, make_source, num_classes
from mim_jax.data.embedded import Embedded, EmbeddedScenes
from mim_jax.errors import UserError


def scenes(split='train', **options):
    return EmbeddedScenes(split=split, **options)


@pytest.mark.parametrize('size', [(32, 32), (48, 48), (64, 64), (40, 64)])
def test_items(size):
    source = scenes(size=size)
    for index in range(20):
        item = source[index]
        assert item['image'].shape == (*size, 3) and item['image'].dtype == np.uint8
        assert item['mask'].shape == size and set(np.unique(item['mask'])) == {0, 1}
        assert 0 <= item['label'] < 10
        # A digit's ink covers some of the scene, never most of it.
        assert 0.02 < item['mask'].mean() < 0.4


def test_an_item_depends_on_split_and_index_alone():
    one, other = scenes(num_train=100), scenes(num_train=5000)
    other[7], other[8]
    for index in (3, 0, 99, 3):
        for key, value in one[index].items():
            np.testing.assert_array_equal(value, other[index][key])
    copy = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(copy[5]['image'], one[5]['image'])
    assert not np.array_equal(one[5]['image'], scenes('test')[5]['image'])
    assert not np.array_equal(one[5]['image'], one[6]['image'])


def test_train_and_test_scenes_come_from_disjoint_digits():
    from sklearn.datasets import load_digits

    used = {split: {d.tobytes() for d in scenes(split)._digits} for split in ('train', 'test')}
    assert not used['train'] & used['test']
    everything = {(d / 16.0).astype(np.float32).tobytes() for d in load_digits().images}
    assert used['train'] | used['test'] == everything


def test_labels_are_balanced_and_every_digit_is_whole():
    source = scenes(num_train=600)
    labels = np.bincount([source[i]['label'] for i in range(600)], minlength=10)
    assert labels.min() > 30
    on_edge = [
        max(m[0].mean(), m[-1].mean(), m[:, 0].mean(), m[:, -1].mean())
        for m in (source[i]['mask'] for i in range(300))
    ]
    assert np.mean(np.array(on_edge) > 0.15) < 0.02


def test_the_digit_stands_out_from_its_surroundings():
    source = scenes()
    for index in range(100):
        item = source[index]
        mask = item['mask'].astype(bool)
        image = item['image'] / 255.0
        assert np.linalg.norm(image[mask].mean(0) - image[~mask].mean(0)) > 0.4


def test_raw_pixels_are_a_poor_nearest_neighbour_feature():
    """Weighted cosine kNN, k = 20, temperature 0.07, by a plain loop."""
    train, test = scenes(num_train=2000), scenes('test', num_test=300)

    def pixels(source):
        items = [source[i] for i in range(len(source))]
        x = np.stack([i['image'] for i in items]).reshape(len(items), -1).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True), [i['label'] for i in items]

    (x, labels), (queries, truth) = pixels(train), pixels(test)
    correct = 0
    for similarity, label in zip(queries @ x.T, truth, strict=True):
        votes = np.zeros(10)
        for i in np.argsort(-similarity)[:20]:
            votes[labels[i]] += np.exp(similarity[i] / 0.07)
        correct += votes.argmax() == label
    assert 0.08 < correct / len(truth) < 0.4


def test_made_by_the_config():
    config = DataConfig(source=Embedded(num_train=20, num_test=10), image_size=(40, 48))
    assert len(make_source(config, split='train')) == 20
    test = make_source(config, split='test')
    assert len(test) == 10
    assert test[0]['image'].shape == (40, 48, 3)
    assert 'scene 3 of test' in test.describe(3)
    with pytest.raises(UserError, match="not 'validation'"):
        make_source(config, split='validation')
    with pytest.raises(UserError, match='image_size is 224x224: the embedded .* 32 to 64 pixels'):
        make_source(DataConfig(image_size=(224, 224)), split='train')


def test_the_stated_fields_are_those_of_the_items():
    source = scenes()
    assert num_classes(source.fields) == 10
    assert {field.name for field in source.fields} == source[0].keys()
    mask = find(source.fields, 'mask')
    assert (mask.kind, mask.dtype, mask.num_classes) == ('map', 'uint8', 2)
    assert Embedded().assumed_fields() == source.fields
