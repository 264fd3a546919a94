"""Image folders: class sub-folders, flat, parts, and what is said when something is missing."""

import pickle

import cv2
import numpy as np
import pytest

from mim_jax.data import DataConfig, make_source
from mim_jax.data.decode import CorruptImage
from mim_jax.errors import UserError


def write(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def open_source(path, split='train'):
    return make_source(DataConfig(source='folder', path=str(path)), split=split)


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
    assert source.num_classes == 3 and source.classes == ['ant', 'cat', 'dog']
    assert source[3]['image'] == (tmp_path / 'dog/a.jpg').read_bytes()


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ('b.webp', 'a.tiff', 'ü c.png'):
        write(tmp_path / name)
    source = pickle.loads(pickle.dumps(open_source(tmp_path)))
    assert described(source) == [str(tmp_path / n) for n in ('a.tiff', 'b.webp', 'ü c.png')]
    assert source.num_classes is None and 'label' not in source[0]


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
        assert source[0]['label'] == 2 and source.num_classes == 3


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
        source[0]
