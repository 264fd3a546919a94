"""Crops and colours that cannot be."""

import pytest

from mim_jax.data import Colors, Crop


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(mode='center'),
            "mode is 'center', must be one of random, simple, scaled, resize, centre",
        ),
        (dict(interpolation='nearest'), 'must be one of bicubic, bilinear'),
        (dict(scale=(0.0, 1.0)), '0 < low <= high <= 1'),
        (dict(ratio=(2.0, 1.0)), '0 < low <= high'),
        (dict(resize=0.9), 'resize is 0.9, must be at least 1'),
        (dict(pad=-1), 'pad is -1'),
        (dict(share=0.0), 'share is 0.0'),
    ],
)
def test_crop(options, message):
    with pytest.raises(ValueError, match=message):
        Crop(**options)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(contrast=-0.1), 'contrast is -0.1'),
        (dict(hue=0.6), 'hue is 0.6, must be in .0, 0.5. turns'),
        (dict(probability=1.1), 'probability is 1.1'),
        (dict(grey=1.5), 'must be probabilities .with one_of=true: weights'),
        (dict(one_of=True), 'all of which are 0'),
        (dict(one_of=True, blur=-1.0), 'grey, solarize and blur are .0.0, 0.0, -1.0.'),
        (dict(blur_sigma=(2.0, 0.1)), '0 < low <= high'),
    ],
)
def test_colors(options, message):
    with pytest.raises(ValueError, match=message):
        Colors(**options)


def test_weights_of_one_of_may_exceed_one():
    assert Colors(one_of=True, grey=2.0, blur=1.0).grey == 2.0
