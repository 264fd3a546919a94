"""Data prepared by TensorFlow Datasets, read without TensorFlow.

The records are read from ArrayRecord files as they are, so that the JPEG bytes reach our own
decode-and-crop; TFDS's readers would decode the whole image first.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from pathlib import Path

import numpy as np

from mim_jax.data.decode import CorruptImage
from mim_jax.data.fields import Field, image_fields
from mim_jax.data.shards import check_shards
from mim_jax.errors import UserError
from mim_jax.ranges import Classes


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Config section of a dataset that TensorFlow Datasets has prepared.

    dataset: its name, as 'imagenet2012' or 'cifar10:3.0.2'.
    path: where datasets are prepared; None: TFDS's default (~/tensorflow_datasets).
    map: name of the feature that holds a map of classes, where it is declared as a mere image
      (scene_parse150: annotation); it becomes the field `map`.
    map_classes, reduce_zero_label: of that map, as of a folder's (`mim_jax.data.folder.Folder`).
    """

    dataset: str | None = None
    path: str | None = None
    map: str | None = None
    map_classes: Classes | None = None
    reduce_zero_label: bool = False

    def __post_init__(self):
        if self.map is None and (self.map_classes is not None or self.reduce_zero_label):
            raise ValueError('map_classes and reduce_zero_label need map, of which they are.')
        if self.reduce_zero_label and not self.map_classes:
            raise ValueError('reduce_zero_label needs map_classes, the number of those left.')

    def open(self, data, *, split):
        """The records of a split; see `TfdsImages`."""
        if not self.dataset:
            raise UserError(
                'config.data.source.dataset is not set: name a dataset, as imagenet2012'
            )
        maps = self.map_fields()
        return TfdsImages(self.dataset, data_dir=self.path, split=split, maps=maps)

    def assumed_fields(self):
        """Those of the dataset, where it is prepared here; else image and label, as ImageNet's."""
        maps = self.map_fields()
        assumed = (*image_fields(1000), *maps.values())
        if not self.dataset:
            return assumed
        try:
            with _metadata(self.dataset, self.path):
                return tuple(_fields(_builder(self.dataset, self.path).info, maps).values())
        except UserError:
            return assumed

    def map_fields(self):
        """Name of the feature that is a map -> its field."""
        if self.map is None:
            return {}
        reduced = self.reduce_zero_label
        field = Field('map', 'map', num_classes=self.map_classes, reduce_zero_label=reduced)
        return {self.map: field}


class TfdsImages:
    """One split of a prepared dataset that has an image.

    Its fields: `image`, the supervised one, or the one of that name, or the first by name in
    colour; `label`, the supervised class or the only one; other classes and numbers under their own
    names, of 64-bit integers the lower 32 bits; other images of one channel as maps; a second image
    of colour as `other`, several under their own names. Text, sequences, and arrays whose shape
    differs from record to record are left out.

    Args:
      name: the dataset, as 'imagenet2012' or 'cifar10:3.0.2'.
      data_dir: where datasets are prepared; None: TFDS's default (~/tensorflow_datasets).
      split: the split, TFDS's slices included, as 'train[:1%]'.
      maps: name of a feature -> the field of kind map that it becomes, whatever is declared.

    Raises:
      UserError: not prepared there, not as ArrayRecord, without that split, an image or a feature
        that `maps` names, or one of the split's files is missing or damaged at its end.
    """

    def __init__(self, name, *, data_dir=None, split, maps=None):
        import tensorflow_datasets  # noqa: F401 (what hinders that is no damage of the data)

        with _metadata(name, data_dir):
            builder = _builder(name, data_dir)
            shards = _shards(builder, name, split)
            self._keys = _fields(builder.info, maps or {})
        if not any(field.name == 'image' for field in self._keys.values()):
            raise UserError(
                f'config.data.source.dataset: {name} has no image, but '
                f'{", ".join(builder.info.features)}'
            )
        self.fields = tuple(self._keys.values())
        self._name = f'{name} {split}'
        command = f'{_command(name, data_dir)} --overwrite'
        mend = f'copy it anew, or prepare the dataset again by `{command}`'
        check_shards(shards, mend=mend)
        self._files = [
            (os.path.basename(s.filename), os.path.getsize(s.filename), s.skip, s.take)
            for s in shards
        ]
        self._records = builder.as_data_source(split=split).data_source

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            record = self._records[index]
        except RuntimeError as error:  # a part of the file is damaged, or the file is gone
            raise CorruptImage(str(error)) from error
        try:
            features = tf_example_pb2.Example.FromString(record).features.feature
            return {field.name: _value(features[key], field) for key, field in self._keys.items()}
        except Exception as error:  # protobuf's own, and of what a record lacks
            raise CorruptImage(f'not the record that the metadata describe: {error}') from error

    def describe(self, index):
        return f'{self._name} record {index}'

    def fingerprint(self):
        """Of the split's files: their names, sizes, and which of their records are taken."""
        return hashlib.sha256(repr(self._files).encode()).hexdigest()


def _value(feature, field):
    """A field's value in a record: encoded bytes, or a number, or an array."""
    if field.kind != 'value':
        return feature.bytes_list.value[0]
    numbers = feature.int64_list.value or feature.float_list.value
    return np.array(numbers).reshape(field.shape)[()]  # a number, where the shape is ()


@contextlib.contextmanager
def _metadata(name, data_dir):
    """Says in a sentence what TFDS and protobuf raise of many kinds at damaged metadata."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(
            f'config.data.source.dataset: the metadata of {name} in '
            f'{data_dir or "~/tensorflow_datasets"} cannot be read ({reason}): copy them anew, or '
            f'prepare the dataset again by `{_command(name, data_dir)} --overwrite`'
        ) from error


def _builder(name, data_dir):
    """TFDS's builder of a dataset that is prepared as ArrayRecord."""
    import tensorflow_datasets as tfds

    where, field = data_dir or '~/tensorflow_datasets', 'config.data.source.dataset'
    command = _command(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        prepared = bool(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, ImportError, AssertionError, ValueError) as error:
        _refuse_inner_folder(name, data_dir)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'{field}: {name} is not prepared in {where} and unknown to TensorFlow Datasets '
            f'({reason}): write NAME, NAME/CONFIG or NAME:1.2.3, and prepare it on a machine with '
            f'TensorFlow by `{command}`'
        ) from error
    if not prepared:
        _refuse_inner_folder(name, data_dir)
        raise UserError(
            f'{field}: {name} is not prepared in {where}: prepare it on a machine with TensorFlow '
            f'by `{command}`'
        )
    file_format = builder.info.file_format
    if file_format is None or file_format.value != 'array_record':
        raise UserError(
            f'{field}: {name} in {where} is prepared as {file_format and file_format.value}, which '
            f'needs TensorFlow to read: prepare it as ArrayRecord by `{command}`'
        )
    return builder


def _command(name, data_dir):
    """What prepares a dataset."""
    where = f' --data_dir={data_dir}' if data_dir else ''
    return f'tfds build {name} --file_format=array_record{where}'


def _refuse_inner_folder(name, data_dir):
    """Raises UserError where `data_dir` is the prepared dataset's own folder or one inside it."""
    if not data_dir:
        return
    path = Path(data_dir).expanduser().absolute()
    base = re.split('[:/]', name)[0]
    # DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/CONFIG/VERSION, holds dataset_info.json.
    deep = any(any(path.glob(f'{inner}dataset_info.json')) for inner in ('', '*/', '*/*/'))
    own = next((folder for folder in (path, *path.parents[:2]) if folder.name == base), None)
    if deep and own is not None:
        raise UserError(
            f'config.data.source.path: {data_dir} is inside the folder of {base} itself: give '
            f'{own.parent}, which holds it'
        )


def _shards(builder, name, split):
    """The files of a split or of a slice of one, and what to take of each."""
    field, splits = 'config.data.split or config.data.eval_split', builder.info.splits
    try:
        shards = splits[split].file_instructions
    except (KeyError, ValueError) as error:
        if split.split('[')[0] in splits:
            raise UserError(
                f'{field}: {split!r} is no part of {name} ({str(error).splitlines()[-1]})'
            ) from error
        raise UserError(
            f'{field}: {name} has no split {split!r}, but {", ".join(sorted(splits))}'
        ) from error
    if not shards:
        raise UserError(f'{field}: {split!r} of {name} has no records: take a larger part')
    return shards


def _fields(info, maps):
    """Key of a feature -> the field that it becomes, image and label first; see `TfdsImages`."""
    from tensorflow_datasets import features as kinds

    for key in maps:
        if key not in info.features or not isinstance(info.features[key], kinds.Image):
            raise UserError(
                f'config.data.source.map: {info.name} has no image {key!r}, but '
                f'{", ".join(sorted(info.features))}'
            )
    features = {key: info.features[key] for key in info.features if key not in maps}
    supervised = [k for k in (info.supervised_keys or ())[:2] if isinstance(k, str)]
    # By name: TFDS lists the features of a dataset read from disk in no order of their own.
    keys = dict.fromkeys([*supervised, *sorted(features)])
    images = [k for k in keys if isinstance(features[k], kinds.Image)]
    images.sort(key=lambda k: (k not in supervised, features[k].shape[-1] == 1, k != 'image'))
    labels = [k for k in keys if isinstance(features[k], kinds.ClassLabel)]
    others = [k for k in images[1:] if features[k].shape[-1] != 1]
    found = {}
    for key in images[:1]:
        found[key] = Field('image', 'image')
    label = next((k for k in labels if k in supervised), labels[0] if len(labels) == 1 else None)
    for key in labels:
        name = 'label' if key == label else key
        kind = features[key]
        names = None if kind.num_classes is None else tuple(kind.names)
        found[key] = Field(name, 'value', num_classes=kind.num_classes, names=names)
    for key in images[1:]:
        if key in others:
            found[key] = Field('other' if len(others) == 1 else key, 'image')
        else:
            classes = getattr(features[key], 'num_classes', None)
            found[key] = Field(key, 'map', num_classes=classes)
    for key, feature in sorted(features.items()):
        if key not in found and _is_number(feature, kinds):
            dtype = 'float32' if np.issubdtype(feature.np_dtype, np.floating) else 'int32'
            found[key] = Field(key, 'value', shape=tuple(feature.shape), dtype=dtype)
    return found | maps


def _is_number(feature, kinds):
    if not isinstance(feature, kinds.Tensor) or None in feature.shape:
        return False
    return np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_
