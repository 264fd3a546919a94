"""Data prepared by TensorFlow Datasets, read without TensorFlow.

The records are read from ArrayRecord files as they are, so that the JPEG bytes reach our own
decode-and-crop; TFDS's readers would decode the whole image first.
"""

from mim_jax.errors import UserError


class TfdsImages:
    """One split of a prepared dataset that has an image and perhaps a class label.

    Args:
      name: the dataset, as 'imagenet2012' or 'cifar10:3.0.2'.
      data_dir: where datasets are prepared; None: TFDS's default (~/tensorflow_datasets).
      split: the split, TFDS's slices included, as 'train[:1%]'.

    Raises:
      UserError: not prepared there, not as ArrayRecord, or without that split or an image.
    """

    def __init__(self, name, *, data_dir=None, split):
        import tensorflow_datasets as tfds

        command = f'tfds build {name} --file_format=array_record'
        if data_dir:
            command += f' --data_dir={data_dir}'
        where = data_dir or '~/tensorflow_datasets'
        try:
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
            prepared = bool(builder.info.splits)
        except (tfds.core.DatasetNotFoundError, ImportError, AssertionError) as error:
            raise UserError(
                f'config.data.dataset: {name} is not prepared in {where} and unknown to TensorFlow '
                f'Datasets ({str(error).splitlines()[0] if str(error) else type(error).__name__}): '
                f'prepare it on a machine with TensorFlow by `{command}`'
            ) from error
        if not prepared:
            raise UserError(
                f'config.data.dataset: {name} is not prepared in {where}: prepare it on a machine '
                f'with TensorFlow by `{command}`'
            )
        file_format = builder.info.file_format
        if file_format is None or file_format.value != 'array_record':
            raise UserError(
                f'config.data.dataset: {name} in {where} is prepared as '
                f'{file_format and file_format.value}, which needs TensorFlow to read: prepare it '
                f'as ArrayRecord by `{command}`'
            )
        try:
            source = builder.as_data_source(split=split)
        except (KeyError, ValueError) as error:
            raise UserError(
                f'config.data.split or config.data.eval_split: {name} has no split {split!r}, but '
                f'{", ".join(sorted(builder.info.splits))}'
            ) from error
        self._records = source.data_source
        self._image_key, self._label_key = _keys(builder.info, tfds, name)
        self.num_classes = None
        if self._label_key is not None:
            self.num_classes = builder.info.features[self._label_key].num_classes
        self._name = f'{name} {split}'

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        from tensorflow_datasets.proto import tf_example_pb2

        features = tf_example_pb2.Example.FromString(self._records[index]).features.feature
        item = {'image': features[self._image_key].bytes_list.value[0]}
        if self._label_key is not None:
            item['label'] = features[self._label_key].int64_list.value[0]
        return item

    def describe(self, index):
        return f'{self._name} record {index}'


def _keys(info, tfds, name):
    """Names of the image and of the label (or None); the supervised pair where there is one."""
    if info.supervised_keys is not None:
        keys = list(info.supervised_keys[:2])
    else:
        keys = list(info.features)
    images = [k for k in keys if isinstance(info.features[k], tfds.features.Image)]
    labels = [k for k in keys if isinstance(info.features[k], tfds.features.ClassLabel)]
    if not images:
        raise UserError(f'config.data.dataset: {name} has no image, but {", ".join(info.features)}')
    return images[0], labels[0] if len(labels) == 1 else None
