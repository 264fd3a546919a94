"""Prepared data without TensorFlow: tiny ArrayRecord datasets written by hand."""

import json
import pickle
import sys

import cv2
import numpy as np
import pytest

from mim_jax.data import DataConfig, Field, eval_batches, find, image_fields, make_source
from mim_jax.data.decode import CorruptImage
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError


def write(root, name, features, records, *, file_format='array_record', supervised=()):
    """What `tfds build` leaves: features.json, dataset_info.json and one shard.

    features: of TFDS; records: dicts of bytes or lists of numbers; supervised: names of two.
    """
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / '1.0.0'
    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(folder)
    shard = folder / f'{name}-train.{file_format}-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
    for record in records:
        example = tf_example_pb2.Example()
        for key, value in record.items():
            feature = example.features.feature[key]
            if isinstance(value, bytes):
                feature.bytes_list.value.append(value)
            elif isinstance(value[0], float):
                feature.float_list.value.extend(value)
            else:
                feature.int64_list.value.extend(value)
        writer.write(example.SerializeToString())
    writer.close()
    split = {'name': 'train', 'shardLengths': [str(len(records))], 'numBytes': '1',
             'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'}  # fmt: skip
    info = {'name': name, 'version': '1.0.0', 'fileFormat': file_format, 'splits': [split]}
    if supervised:
        items = [{'featureKey': key} for key in supervised]
        info['supervisedKeys'] = {'tuple': {'items': items}}
    (folder / 'dataset_info.json').write_text(json.dumps(info))


def flat(value, *shape, ending='.png'):
    """An encoded image of one value."""
    return cv2.imencode(ending, np.full(shape, value, np.uint8))[1].tobytes()


def prepare(root, *, name='tiny', num=5, file_format='array_record', image=True):
    """Photos and labels 0, 1, 2, 0, …; returns the photos' bytes."""
    from tensorflow_datasets import features as kinds

    features = {'label': kinds.ClassLabel(names=['a', 'b', 'c'])}
    if image:
        features['image'] = kinds.Image(shape=(None, None, 3), encoding_format='jpeg')
    photos = [flat(40 * i % 256, 20, 30, 3, ending='.jpg') for i in range(num)]
    records = [{'image': photo, 'label': [i % 3]} for i, photo in enumerate(photos)]
    write(root, name, features, records, file_format=file_format)
    return photos


def open_source(root, dataset='tiny', split='train'):
    config = DataConfig(source=Tfds(path=str(root), dataset=dataset))
    return make_source(config, split=split)


def test_records_are_the_bytes_that_were_prepared(tmp_path):
    photos = prepare(tmp_path)
    source = open_source(tmp_path)
    assert len(source) == 5 and source.fields == image_fields(3)
    assert find(source.fields, 'label').names == ('a', 'b', 'c')
    for i in (4, 0, 2):
        assert source[i]['image'] == photos[i]
        assert source[i]['label'] == i % 3
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]['image'] == photos[3]
    assert copy.describe(3) == 'tiny train record 3'
    assert len(open_source(tmp_path, split='train[:40%]')) == 2
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('name', ['imagenet2012', 'no_such_dataset'])
def test_not_prepared_names_the_command(tmp_path, name):
    command = f'tfds build {name} --file_format=array_record --data_dir={tmp_path}'
    with pytest.raises(UserError, match=command):
        open_source(tmp_path, name)


def test_other_file_format_split_or_content(tmp_path):
    prepare(tmp_path, name='old', file_format='tfrecord')
    with pytest.raises(UserError, match='prepared as tfrecord.*tfds build old --file_format'):
        open_source(tmp_path, 'old')
    prepare(tmp_path)
    with pytest.raises(UserError, match="tiny has no split 'test', but train"):
        open_source(tmp_path, split='test')
    prepare(tmp_path, name='blind', image=False)
    with pytest.raises(UserError, match='blind has no image, but label'):
        open_source(tmp_path, 'blind')


def test_parts_that_are_none(tmp_path):
    prepare(tmp_path)
    with pytest.raises(UserError, match=r"'train\[:0\]' of tiny has no records: take a larger"):
        open_source(tmp_path, split='train[:0]')
    with pytest.raises(UserError, match=r"'train\[2:9\]' is no part of tiny .*5 examples"):
        open_source(tmp_path, split='train[2:9]')


@pytest.mark.parametrize('given', ['tiny', 'tiny/1.0.0'])
def test_folder_of_the_dataset_itself_names_the_one_above(tmp_path, given):
    prepare(tmp_path)
    with pytest.raises(UserError, match=f'{given} is inside the folder of tiny .*{tmp_path}, wh'):
        open_source(tmp_path / given)


@pytest.mark.parametrize('version', ['', '/1.0.0'])
def test_folder_of_a_known_dataset_itself_names_the_one_above(tmp_path, version):
    """TFDS has code for it, so that it looks unprepared and not unknown."""
    prepare(tmp_path, name='mnist')
    given = f'{tmp_path}/mnist{version}'
    with pytest.raises(UserError, match=f'{given} is inside the folder of mnist .*{tmp_path}, wh'):
        open_source(given, 'mnist')


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (lambda path: path.unlink(), 'is missing: copy it anew'),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), 'is truncated or no ArrayRecord'),
        (lambda path: path.write_bytes(b''), 'is truncated or no ArrayRecord'),
        (lambda path: claim_records(path.parent, 6), 'holds 5 records, its dataset_info.json says'),
    ],
)
def test_bad_shard_is_one_sentence_before_anything_is_read(tmp_path, damage, said):
    prepare(tmp_path)
    shard = tmp_path / 'tiny' / '1.0.0' / 'tiny-train.array_record-00000-of-00001'
    damage(shard)
    sentence = f'^config.data.source.path: the shard {shard} {said}.*tfds build tiny .* --overwrite'
    with pytest.raises(UserError, match=sentence):
        open_source(tmp_path)


def claim_records(folder, count):
    """Lets the metadata say that the shard has so many records."""
    path = folder / 'dataset_info.json'
    info = json.loads(path.read_text())
    info['splits'][0]['shardLengths'] = [str(count)]
    path.write_text(json.dumps(info))


def test_record_damaged_in_the_middle_is_a_corrupt_image(tmp_path):
    photos = prepare(tmp_path)
    shard = tmp_path / 'tiny' / '1.0.0' / 'tiny-train.array_record-00000-of-00001'
    content = bytearray(shard.read_bytes())
    begin = -1
    for _ in range(3):  # records are compressed: they begin as the photos do, and go on otherwise
        begin = content.index(photos[2][:3], begin + 1)
    content[begin + 10] ^= 255
    shard.write_bytes(bytes(content))
    source = open_source(tmp_path)
    with pytest.raises(CorruptImage, match='Corrupted'):
        source[2]
    assert source[3]['image'] == photos[3]
    config = DataConfig(image_size=(8, 8), max_corrupt_share=0.3)
    batch = next(iter(eval_batches(source, config, batch_size=5)))
    np.testing.assert_array_equal(batch['valid'], [True, True, False, True, True])


@pytest.mark.parametrize('supervised', [('picture', 'family'), ()])
def test_every_feature_of_fixed_shape_is_a_field(tmp_path, supervised):
    """Two classes, a number, an array, a map and a second image; text and lists are left out."""
    from tensorflow_datasets import features as kinds

    colour = kinds.Image(shape=(None, None, 3), encoding_format='png')
    features = {
        'picture': colour,
        'right': colour,
        'segmentation': kinds.LabeledImage(labels=4, shape=(None, None, 1)),
        'species': kinds.ClassLabel(num_classes=7),
        'family': kinds.ClassLabel(num_classes=3),
        'corner': kinds.Tensor(shape=(2,), dtype=np.float32),
        'age': np.int64,
        'name': kinds.Text(),
        'words': kinds.Sequence(kinds.ClassLabel(num_classes=2)),
    }
    records = [
        {
            'picture': flat(i, 6, 6, 3),
            'right': flat(100 + i, 6, 6, 3),
            'segmentation': flat(i, 6, 6),
            'species': [i],
            'family': [i % 3],
            'corner': [0.5, i / 4],
            'age': [40 + i],
            'name': b'x',
        }
        for i in range(4)
    ]
    write(tmp_path, 'rich', features, records, supervised=supervised)
    source = open_source(tmp_path, 'rich')
    assert set(source.fields) == {
        Field('image', 'image'),
        Field('other', 'image'),
        Field('segmentation', 'map', num_classes=4),
        Field('species', 'value', num_classes=7),
        Field('label' if supervised else 'family', 'value', num_classes=3),
        Field('corner', 'value', shape=(2,), dtype='float32'),
        Field('age', 'value'),
    }
    assert Tfds(path=str(tmp_path), dataset='rich').assumed_fields() == source.fields
    config = DataConfig(image_size=(6, 6))
    views = {'images': config.view(maps=('segmentation',)), 'pair': config.view(of='other')}
    batch = next(iter(eval_batches(source, config, batch_size=4, views=views)))
    numbers = np.arange(4)
    np.testing.assert_array_equal(batch['images'][:, 0, 0, 0], numbers)
    np.testing.assert_array_equal(batch['pair'][:, 0, 0, 0], 100 + numbers)
    np.testing.assert_array_equal(batch['images_segmentation'][:, 2, 2], numbers)
    np.testing.assert_array_equal(batch['labels' if supervised else 'familys'], numbers % 3)
    np.testing.assert_array_equal(batch['corners'], np.stack([0 * numbers + 0.5, numbers / 4], 1))
    np.testing.assert_array_equal(batch['ages'], 40 + numbers)


def test_a_map_of_classes_that_is_declared_an_image(tmp_path):
    """As scene_parse150, whose annotation is declared to have three channels and has one."""
    from tensorflow_datasets import features as kinds

    features = {
        'annotation': kinds.Image(shape=(None, None, 3), encoding_format='png'),
        'image': kinds.Image(shape=(None, None, 3), encoding_format='jpeg'),
    }
    photo = flat(90, 20, 30, 3, ending='.jpg')
    records = [{'image': photo, 'annotation': flat(i, 20, 30)} for i in (0, 3)]
    write(tmp_path, 'scenes', features, records)

    def make(**section):
        section = Tfds(path=str(tmp_path), dataset='scenes', **section)
        config = DataConfig(source=section, image_size=(8, 8))
        return section, config, make_source(config, split='train')

    options = {'map': 'annotation', 'map_classes': 150, 'reduce_zero_label': True}
    section, config, source = make(**options)
    expected = Field('map', 'map', num_classes=150, reduce_zero_label=True)
    assert source.fields == (*image_fields(), expected) == section.assumed_fields()
    views = {'images': config.view(maps=('map',))}
    batch = next(iter(eval_batches(source, config, batch_size=2, views=views)))
    assert (batch['images_map'][0] == 255).all() and (batch['images_map'][1] == 2).all()
    assert Tfds(**options).assumed_fields() == (*image_fields(1000), expected)
    _, _, plain = make()
    assert plain.fields == (*image_fields(), Field('other', 'image'))
    with pytest.raises(UserError, match="scenes has no image 'mask', but annotation, image"):
        make(map='mask')
    with pytest.raises(ValueError, match='need map'):
        Tfds(map_classes=3)
    with pytest.raises(ValueError, match='reduce_zero_label needs map_classes'):
        Tfds(map='annotation', reduce_zero_label=True)
