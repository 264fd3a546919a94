"""Values of the config section `data` that cannot be."""

import pytest

from mim_jax.data import Colors, Crop, DataConfig, View


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(image_size=(224, 224, 3)), 'must be .height, width.'),
        (dict(channels=1), 'mean has 3 numbers, channels is 1: give one per channel'),
        (dict(std=(1.0, 1.0)), 'std has 2 numbers'),
    ],
)
def test_data(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_views_have_what_the_section_says_but_for_what_is_named():
    crop, colors = Crop(scale=(0.5, 1.0)), Colors(hue=0.1)
    config = DataConfig(image_size=(32, 40), crop=crop, flip=0.5, colors=colors)
    assert config.view() == View(crop=crop, image_size=(32, 40), flip=0.5, colors=colors)
    small = config.view(image_size=(16, 16), of='other', colors=Colors(grey=0.2))
    assert (small.image_size, small.of, small.flip) == ((16, 16), 'other', 0.5)
    assert small.crop == crop and small.colors.grey == 0.2
    assert len({hash(config.view()), hash(small)}) == 2
    with pytest.raises(TypeError, match='colour'):
        config.view(colour=1)
