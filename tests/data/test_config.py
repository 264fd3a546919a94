"""Values of the config section `data` that cannot be."""

import pytest

from mim_jax.data import Crop, DataConfig, Embedded

FOLDER = dict(source='folder', path='/photos')


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(source='imagenet'), "source is 'imagenet', must be one of embedded, folder, tfds"),
        (dict(source='folder'), "source 'folder' needs path"),
        (dict(source='tfds'), "source 'tfds' needs dataset"),
        (dict(**FOLDER, image_size=(224,)), 'must be .height, width.'),
        (dict(image_size=(224, 224)), '32 to 64 pixels a side'),
        (dict(**FOLDER, channels=2), 'channels is 2, must be 3 .colour. or 1 .grey.'),
        (dict(**FOLDER, channels=1), 'mean has 3 numbers, channels is 1: give one per channel'),
        (dict(**FOLDER, std=(1.0, 0.0, 1.0)), 'above 0'),
        (dict(**FOLDER, batch_size=0), 'batch_size is 0'),
        (dict(**FOLDER, flip=1.5), 'must be a probability'),
        (dict(**FOLDER, color_jitter=(0.4, 0.4)), 'brightness, contrast, saturation'),
        (dict(**FOLDER, eval_crop=0.0), 'eval_crop is 0.0'),
        (dict(**FOLDER, max_corrupt_share=2.0), 'max_corrupt_share is 2.0'),
        (dict(**FOLDER, workers=-1), 'at least 0'),
    ],
)
def test_data(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(mode='center'), "mode is 'center', must be one of random, resize, none"),
        (dict(interpolation='nearest'), 'must be one of bicubic, bilinear'),
        (dict(scale=(0.0, 1.0)), '0 < low <= high <= 1'),
        (dict(ratio=(2.0, 1.0)), '0 < low <= high'),
    ],
)
def test_crop(options, message):
    with pytest.raises(ValueError, match=message):
        Crop(**options)


def test_embedded():
    with pytest.raises(ValueError, match='at least 1'):
        Embedded(num_train=0)
