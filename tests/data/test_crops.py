"""Where views lie: boxes drawn and centred, and torchvision's Resize and RandomCrop."""

import functools
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from mim_jax.data import Crop, crops
from mim_jax.errors import UserError


def test_random_boxes_are_inside_and_within_scale_and_ratio():
    rng = np.random.default_rng(0)
    areas, log_ratios = [], []
    for _ in range(3000):
        top, left, h, w = crops.random_box(
            rng, height=300, width=400, scale=(0.2, 0.5), ratio=(3 / 4, 4 / 3)
        )
        assert top >= 0 and top + h <= 300 and left >= 0 and left + w <= 400
        areas.append(h * w / (300 * 400))
        log_ratios.append(math.log(w / h))
    assert min(areas) > 0.195 and max(areas) < 0.505
    assert math.log(3 / 4) - 0.02 < min(log_ratios) and max(log_ratios) < math.log(4 / 3) + 0.02
    # All these boxes fit at the first try, so area and log ratio are uniform.
    assert abs(np.mean(areas) - 0.35) < 0.01
    assert abs(np.mean(log_ratios)) < 0.02


def test_fallback_is_the_largest_centred_box_of_allowed_ratio():
    rng = np.random.default_rng(0)
    box = functools.partial(crops.random_box, rng, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    assert box(height=100, width=1000) == (0, 433, 100, 133)
    assert box(height=1000, width=90) == (440, 0, 120, 90)


@pytest.mark.parametrize(
    'height, width, size, share, expected',
    [
        (256, 256, (224, 224), 0.875, (16, 16, 224, 224)),
        (375, 500, (224, 224), 0.875, (23, 86, 328, 328)),  # 256 / 224 of the short side
        (100, 300, (32, 64), 1.0, (0, 50, 100, 200)),
        (32, 32, (32, 32), 1.0, (0, 0, 32, 32)),
    ],
)
def test_centre_box(height, width, size, share, expected):
    assert crops.centre_box(height=height, width=width, size=size, share=share) == expected


FILTERS = {'bicubic': Image.BICUBIC, 'bilinear': Image.BILINEAR}


def photo(height=120, width=90):
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    layers = [110 + 60 * np.sin(x / 7), 110 + 60 * np.cos(y / 5), 60 + x / 2 + y / 2]
    return np.clip(np.stack(layers, -1) + noise, 30, 225).astype(np.uint8)


def resized_and_cropped(image, rng, *, size, short, pad, name):
    """torchvision's Resize(short) and RandomCrop(size, padding=pad, padding_mode='reflect')."""
    height, width = image.shape[:2]
    if width <= height:
        shape = int(short * height / width), short
    else:
        shape = short, int(short * width / height)
    image = np.asarray(Image.fromarray(image).resize(shape[::-1], FILTERS[name]))
    image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    top = rng.integers(0, image.shape[0] - size[0] + 1)
    left = rng.integers(0, image.shape[1] - size[1] + 1)
    return image[top : top + size[0], left : left + size[1]], (top - pad, left - pad), shape


@pytest.mark.parametrize('shape', [(120, 90), (64, 91), (32, 32), (20, 50)])
@pytest.mark.parametrize(('resize', 'pad'), [(1.0, 4), (40 / 32, 0), (1.0, 0), (40 / 32, 3)])
@pytest.mark.parametrize('name', FILTERS)
def test_simple_crops_are_resize_and_random_crop_in_one_resampling(shape, resize, pad, name):
    image = photo(*shape)
    crop = Crop(mode='simple', resize=resize, pad=pad, interpolation=name)
    frames = set()
    for seed in range(12):
        window = crops.choose(
            crop, np.random.default_rng(seed), height=shape[0], width=shape[1], size=(32, 32)
        )
        ours = window.cut(image, reduction=1, interpolation=name)
        theirs, start, whole = resized_and_cropped(
            image, np.random.default_rng(seed), size=(32, 32), short=round(32 * resize), pad=pad,
            name=name,
        )  # fmt: skip
        assert ours.shape == (32, 32, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        np.testing.assert_allclose(
            np.array(window.frame).reshape(2, 2) / shape,
            np.array([start, (32, 32)]) / np.array(whole),
        )
        frames.add(window.frame)
    assert len(frames) > (1 if resize > 1 or pad or shape[0] != shape[1] else 0)


def test_simple_crops_cover_views_that_are_not_square():
    for height, width in ((100, 100), (30, 200), (200, 30)):
        window = crops.simple_window(
            np.random.default_rng(0), height=height, width=width, size=(24, 40), resize=1.0, pad=0
        )
        cut = window.cut(photo(height, width), reduction=1, interpolation='bicubic')
        assert cut.shape == (24, 40, 3)


def test_maps_are_reflected_with_their_image():
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    window = crops.simple_window(
        np.random.default_rng(2), height=16, width=16, size=(16, 16), resize=1.0, pad=6
    )
    cut = window.cut(image, reduction=1, interpolation='bicubic')
    np.testing.assert_array_equal(window.nearest(image[..., 0], of=(16, 16)), cut[..., 0])
    assert window.frame[:2] != (0, 0)


def test_without_crop_another_size_is_an_error_that_names_the_fields():
    with pytest.raises(UserError, match='12x10.*a view of it 8x8.*data.crop.mode.*image_size'):
        crops.choose(Crop(mode='none'), None, height=12, width=10, size=(8, 8))
