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
        (dict(scale=(0.5,)), 'scale = .0.5,. must be .low, high.'),
        (dict(ratio=(2.0, 1.0)), 'ratio = .2.0, 1.0. must be .low, high. with low <= high'),
        (dict(factor=(2.0, 0.5)), 'factor'),
    ],
)
def test_crop(options, message):
    with pytest.raises(ValueError, match=message):
        Crop(**options)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(grey=1.5), 'must be probabilities .with one_of=true: weights'),
        (dict(one_of=True), 'all of which are 0'),
        (dict(blur_sigma=(2.0, 0.1)), 'blur_sigma'),
    ],
)
def test_colors(options, message):
    with pytest.raises(ValueError, match=message):
        Colors(**options)


def test_weights_of_one_of_may_exceed_one():
    assert Colors(one_of=True, grey=2.0, blur=1.0).grey == 2.0
