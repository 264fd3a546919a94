"""Plain folders of classes: a share of the images is held out as their evaluation split."""

import shutil

import numpy as np
import pytest

from mim_jax.data import DataConfig, make_source
from mim_jax.data.folder import Folder
from mim_jax.data.holdout import held_out
from mim_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Function class -> number of images, that adds them; they are never opened."""

    def add(**classes):
        for name, count in classes.items():
            (tmp_path / name).mkdir(exist_ok=True)
            for i in range(count):
                (tmp_path / name / f'{i}.jpg').touch()
        return tmp_path

    return add


def opened(path, split, *, eval_split='test', **section):
    config = DataConfig(source=Folder(path=str(path), **section), eval_split=eval_split)
    return make_source(config, split=split)


def both(path, **section):
    """Names of the two splits, as {name: label}."""
    found = []
    for split in ('train', 'test'):
        source = opened(path, split, **section)
        names = [source.describe(i) for i in range(len(source))]
        assert names == sorted(names)
        found.append(dict(zip(names, source._labels, strict=True)))
    return found


def test_splits_are_disjoint_and_complete_and_keep_their_labels(folder):
    root = folder(ant=200, bee=300)
    train, test = both(root)
    assert not set(train) & set(test) and len(train) + len(test) == 500
    assert set(train | test) == {str(p) for p in root.rglob('*.jpg')}
    for name, label in (train | test).items():
        assert label == (f'{root}/bee/' in name)
    # Five standard deviations around a tenth of each class.
    assert abs(sum(label == 0 for label in test.values()) - 20) < 5 * 18**0.5
    assert abs(sum(label == 1 for label in test.values()) - 30) < 5 * 27**0.5


def test_the_share_and_the_seed_count_and_nothing_else_does(folder, tmp_path_factory):
    root = folder(ant=100, bee=100)
    elsewhere = tmp_path_factory.mktemp('elsewhere') / 'moved'
    shutil.copytree(root, elsewhere)
    train, test = both(root)
    assert [test, train] == [
        {name.replace(str(elsewhere), str(root)): label for name, label in part.items()}
        for part in both(elsewhere)[::-1]
    ]
    half = both(root, holdout=0.5)[1]
    assert set(test) < set(half) and abs(len(half) - 100) < 36
    other = both(root, holdout_seed=1)[1]
    assert len(set(other) & set(test)) < len(test)


def test_added_images_move_no_others(folder):
    train, test = both(folder(ant=100, bee=100))
    more_train, more_test = both(folder(ant=150, bee=100, cat=40))
    assert set(train) < set(more_train) and set(test) < set(more_test)


@pytest.mark.parametrize('share', [0.001, 0.1, 0.999])
def test_every_class_is_in_both_parts_where_it_can_be(folder, share):
    train, test = both(folder(one=1, two=2, three=3, many=30), holdout=share)
    counts = [np.bincount(list(part.values()), minlength=4).tolist() for part in (train, test)]
    assert min(counts[0]) >= 1  # many, one, three, two
    assert counts[1][1] == 0 and min(counts[1][0], *counts[1][2:]) >= 1


def test_without_classes_there_is_nothing_to_evaluate_by(tmp_path):
    """No image is withheld from training then."""
    for i in range(20):
        (tmp_path / f'{i}.jpg').touch()
    source = opened(tmp_path, 'train')
    assert len(source) == 20 and source.note is None
    with pytest.raises(UserError, match='no sub-folder for the split.*eval_split=none'):
        opened(tmp_path, 'test')


def test_it_is_said_and_can_be_turned_off(folder):
    root = folder(ant=10, bee=10)
    train, test = opened(root, 'train'), opened(root, 'test')
    words = f'evaluated on {len(test)} of 20 images held out (data.source.holdout=0.1)'
    assert train.note == test.note == words
    everything = opened(root, 'train', eval_split=None)
    assert len(everything) == 20 and everything.note is None
    assert len({source.fingerprint() for source in (train, test, everything)}) == 3
    with pytest.raises(UserError, match='no sub-folder for the split.*eval_split=none'):
        opened(root, 'test', holdout=0.0)
    assert len(opened(root, 'train', holdout=0.0)) == 20


def test_folders_with_splits_of_their_own_are_left_alone(folder):
    root = folder(**{'train': 0, 'test': 0})
    for split in ('train', 'test'):
        (root / split / 'ant').mkdir()
        for i in range(20):
            (root / split / 'ant' / f'{i}.jpg').touch()
    train, test = both(root)
    assert len(train) == len(test) == 20 and opened(root, 'train').note is None
    with pytest.raises(UserError, match='no sub-folder for the split'):
        opened(root, 'unknown')


def test_maps_and_pairs_go_with_their_images(tmp_path):
    for i in range(40):
        for path in (f'images/a/{i:02}_1.jpg', f'images/a/{i:02}_2.jpg', f'maps/a/{i:02}_1.png'):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    section = dict(pairs=True, map_path=str(tmp_path / 'maps'))
    train, test = (opened(tmp_path / 'images', split, **section) for split in ('train', 'test'))
    assert len(train) + len(test) == 40 and len(test)
    for source in (train, test):
        for i in range(len(source)):
            paths = source[i].paths
            stems = {paths[name].rsplit('/', 1)[1].split('_')[0] for name in paths}
            assert set(paths) == {'image', 'other', 'map'} and len(stems) == 1


def test_classes_of_one_image_cannot_be_divided(folder):
    with pytest.raises(UserError, match='holdout = 0.1: .* no class of two images or more'):
        opened(folder(ant=1, bee=1), 'train')


def test_numbers_are_even():
    """Every tenth of the unit interval gets its tenth of many names; 27.88 is what the chi-squared
    statistic of nine degrees of freedom exceeds once in a thousand times.
    """
    names = [f'class/{i}.jpg' for i in range(2000)]
    counts = [
        held_out(names, np.zeros(len(names), int), share=i / 10, seed=3).sum() for i in range(1, 10)
    ]
    found = np.diff([0, *counts, 2000])
    assert ((found - 200) ** 2 / 200).sum() < 27.88
