"""Prepared data without TensorFlow: a tiny ArrayRecord dataset written by hand."""

import json
import pickle
import sys

import cv2
import numpy as np
import pytest

from mim_jax.data import DataConfig, image_fields, make_source
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError


def prepare(root, *, name='tiny', num=5, file_format='array_record', image=True):
    """What `tfds build` leaves: features.json, dataset_info.json and one shard."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / '1.0.0'
    folder.mkdir(parents=True)
    features = {'label': tfds.features.ClassLabel(names=['a', 'b', 'c'])}
    if image:
        features['image'] = tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg')
    tfds.features.FeaturesDict(features).save_config(folder)
    shard = folder / f'{name}-train.{file_format}-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(shard), 'group_size:1')
    photos = []
    for i in range(num):
        photos.append(cv2.imencode('.jpg', np.full((20, 30, 3), 40 * i, np.uint8))[1].tobytes())
        example = tf_example_pb2.Example()
        example.features.feature['image'].bytes_list.value.append(photos[-1])
        example.features.feature['label'].int64_list.value.append(i % 3)
        writer.write(example.SerializeToString())
    writer.close()
    split = {'name': 'train', 'shardLengths': [str(num)], 'numBytes': '1',
             'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'}  # fmt: skip
    info = {'name': name, 'version': '1.0.0', 'fileFormat': file_format, 'splits': [split]}
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    return photos


def open_source(root, dataset='tiny', split='train'):
    config = DataConfig(source=Tfds(path=str(root), dataset=dataset))
    return make_source(config, split=split)


def test_records_are_the_bytes_that_were_prepared(tmp_path):
    photos = prepare(tmp_path)
    source = open_source(tmp_path)
    assert len(source) == 5 and source.fields == image_fields(3)
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
