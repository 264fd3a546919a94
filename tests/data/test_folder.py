"""Image folders: class sub-folders, flat, parts, and what is said when something is missing."""

import os
import pickle
import shutil

import cv2
import numpy as np
import pytest

from mim_jax.data import (
    DataConfig,
    Field,
    eval_batches,
    find,
    image_fields,
    make_source,
    num_classes,
)
from mim_jax.data.decode import CorruptImage
from mim_jax.data.elements import EvalElements
from mim_jax.data.folder import Folder
from mim_jax.errors import UserError


def write(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def open_source(path, split='train', **section):
    config = DataConfig(source=Folder(path=str(path), **section), eval_split=None)
    return make_source(config, split=split)


def described(source):
    return [source.describe(i) for i in range(len(source))]


def test_classes_are_sorted_sub_folders(tmp_path):
    for name in ('dog/b.JPG', 'dog/a.jpg', 'cat/z.png', 'cat/deep/y.png', 'ant/1.bmp'):
        write(tmp_path / name)
    (tmp_path / 'cat' / 'notes.txt').write_text('no image')
    source = open_source(tmp_path)
    names = ['ant/1.bmp', 'cat/z.png', 'cat/deep/y.png', 'dog/a.jpg', 'dog/b.JPG']
    assert described(source) == [str(tmp_path / n) for n in names]
    assert [source[i]['label'] for i in range(5)] == [0, 1, 1, 2, 2]
    assert num_classes(source.fields) == 3 and source.classes == ['ant', 'cat', 'dog']
    assert find(source.fields, 'label').names == ('ant', 'cat', 'dog')
    assert source[3]['image'] == (tmp_path / 'dog/a.jpg').read_bytes()


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ('b.webp', 'a.tiff', 'ü c.png'):
        write(tmp_path / name)
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert described(source) == [str(tmp_path / n) for n in ('a.tiff', 'b.webp', 'ü c.png')]
    assert source.fields == image_fields() and 'label' not in source[0] and source[0]['image']


@pytest.mark.parametrize('name', ['test', 'val', 'validation'])
def test_parts(tmp_path, name):
    for label in ('x', 'y', 'z'):
        write(tmp_path / 'train' / label / '0.png')
    write(tmp_path / name / 'z' / '7.png')
    assert len(open_source(tmp_path)) == 3
    for split in ('test', 'val', 'validation'):
        source = open_source(tmp_path, split)
        assert described(source) == [str(tmp_path / name / 'z' / '7.png')]
        # Numbers are those of the training classes, though x and y are absent here.
        assert source[0]['label'] == 2 and num_classes(source.fields) == 3


def test_test_classes_unknown_to_training(tmp_path):
    write(tmp_path / 'train' / 'x' / '0.png')
    write(tmp_path / 'test' / 'y' / '0.png')
    with pytest.raises(UserError, match='test/y has no counterpart in .*train'):
        open_source(tmp_path, 'test')


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match='no folder .*nowhere'):
        open_source(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='no images in .*expected files that end in .jpg'):
        open_source(tmp_path)
    write(tmp_path / 'a.png')
    with pytest.raises(UserError, match="no sub-folder for the split 'test'.*eval_split"):
        open_source(tmp_path, 'test')
    write(tmp_path / 'test' / 'x' / 'a.png')
    with pytest.raises(UserError, match="no sub-folder for the split 'train'"):
        open_source(tmp_path, 'train')


def test_an_image_that_disappeared_counts_as_corrupt(tmp_path):
    write(tmp_path / 'a.png')
    source = open_source(tmp_path)
    (tmp_path / 'a.png').unlink()
    with pytest.raises(CorruptImage, match='No such file'):
        source[0]['image']


def test_images_beside_class_folders_are_told(tmp_path):
    for name in ('cat/1.png', 'dog/1.png', 'stray.jpg', 'thumbnail.png'):
        write(tmp_path / name)
    with pytest.raises(UserError, match='beside them 2 images without a class .*: stray.jpg'):
        open_source(tmp_path)


def test_a_folder_must_be_named():
    with pytest.raises(UserError, match='config.data.source.path is not set'):
        make_source(DataConfig(source=Folder()), split='train')


def test_pairs_are_two_images_of_one_stem(tmp_path):
    for scene, room in (('a', 'x'), ('b', 'x'), ('c', 'y')):
        for number in (1, 2):
            write(tmp_path / room / f'{scene}_{number}.png', ord(scene) + 100 * (number - 1))
    source = pickle.loads(pickle.dumps(open_source(tmp_path, pairs=True)))
    assert [field.name for field in source.fields] == ['image', 'label', 'other']
    assert [path[-5:] for path in described(source)] == ['1.png'] * 3
    assert [source[i]['label'] for i in range(3)] == [0, 0, 1]
    config = DataConfig(image_size=(8, 8))
    views = {'images': config.view(), 'second': config.view(of='other')}
    batch = next(iter(eval_batches(source, config, batch_size=3, views=views)))
    np.testing.assert_array_equal(batch['images'][:, 0, 0, 0], [97, 98, 99])
    np.testing.assert_array_equal(batch['second'][:, 0, 0, 0], [197, 198, 199])
    write(tmp_path / 'y' / 'd_1.png')
    with pytest.raises(UserError, match='source.pairs: .*d_1.png has no counterpart.*STEM_2'):
        open_source(tmp_path, pairs=True)


def test_a_corrupt_second_image_is_named_and_hurts_no_one_who_does_not_want_it(tmp_path):
    write(tmp_path / 'a_1.png', 50)
    (tmp_path / 'a_2.png').write_bytes(b'no image')
    source, config = open_source(tmp_path, pairs=True), DataConfig(image_size=(8, 8))
    pair = {'images': config.view(), 'second': config.view(of='other')}
    ((index, reason),) = EvalElements(source, config, pair)(0)['corrupt']
    assert index == 0 and reason.startswith('its other: ')
    (tmp_path / 'a_2.png').unlink()
    assert EvalElements(source, config, {'images': config.view()})(0)['corrupt'] == []


def test_maps_lie_in_a_folder_of_their_own(tmp_path):
    """As ADE20K has them: images/training/*.jpg, annotations/training/*.png."""
    for i in range(3):
        write(tmp_path / 'images' / 'training' / f'{i}.jpg', 10 * i, size=(8, 8))
        path = tmp_path / 'annotations' / 'training' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((8, 8), i + 1, np.uint8))
    options = dict(map_path=str(tmp_path / 'annotations'), map_classes=151)
    source = open_source(tmp_path / 'images', 'training', **options)
    expected = Field('map', 'map', num_classes=151)
    assert source.fields == (*image_fields(), expected)
    assert Folder(path='x', **options).assumed_fields() == (*image_fields(1000), expected)
    config = DataConfig(image_size=(8, 8))
    views = {'images': config.view(maps=('map',))}
    batch = next(iter(eval_batches(source, config, batch_size=3, views=views)))
    assert batch['images_map'].dtype == np.int32
    np.testing.assert_array_equal(batch['images_map'][:, 4, 4], [1, 2, 3])
    (tmp_path / 'annotations' / 'training' / '1.png').unlink()
    with pytest.raises(UserError, match='map_path: .*training/1.png is missing'):
        open_source(tmp_path / 'images', 'training', **options)
    with pytest.raises(UserError, match='source.map_path: there is no folder .*nowhere'):
        open_source(tmp_path / 'images', 'training', map_path=str(tmp_path / 'nowhere'))


def test_what_archivers_leave_is_no_class_and_an_empty_class_is_told(tmp_path):
    for name in ('train/cat/1.png', 'train/dog/2.png', 'train/__MACOSX/._1.png', 'test/dog/3.png'):
        write(tmp_path / name)
    (tmp_path / 'test/cat').mkdir()
    assert open_source(tmp_path).classes == ['cat', 'dog']
    assert open_source(tmp_path, split='test')[0]['label'] == 1
    (tmp_path / 'train/fox').mkdir()
    with pytest.raises(UserError, match='the class folder .*fox has no images: put some in'):
        open_source(tmp_path)


def test_a_pipe_is_no_image(tmp_path):
    write(tmp_path / 'a.png')
    os.mkfifo(tmp_path / 'b.png')
    source = open_source(tmp_path)
    assert source[0]['image']
    with pytest.raises(CorruptImage, match='b.png: not a file of bytes'):
        source[1]['image']


def test_the_fingerprint_changes_with_names_classes_and_sizes(tmp_path):
    for name in ('cat/1.png', 'dog/2.png'):
        write(tmp_path / 'one' / name)
    shutil.copytree(tmp_path / 'one', tmp_path / 'moved')
    first = open_source(tmp_path / 'one').fingerprint()
    assert open_source(tmp_path / 'moved').fingerprint() == first
    prints = {first}
    for change in (
        lambda root: (root / 'dog/2.png').rename(root / 'dog/3.png'),
        lambda root: (root / 'dog').rename(root / 'ape'),
        lambda root: write(root / 'cat/1.png', size=(9, 9)),
        lambda root: (root / 'cat/1.png').unlink() or write(root / 'cat/1.png', size=(64, 64)),
    ):
        change(tmp_path / 'moved')
        prints.add(open_source(tmp_path / 'moved').fingerprint())
    assert len(prints) == 5
