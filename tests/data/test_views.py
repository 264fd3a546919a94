"""Boxes, scaled decoding and masks of the training and evaluation views."""

import functools
import io
import math

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import decode, views
from mim_jax.errors import UserError


def photo_bytes(name='china.jpg'):
    from pathlib import Path

    import sklearn.datasets

    return Path(sklearn.datasets.__file__).with_name('images').joinpath(name).read_bytes()


def encoded(image, kind='png', **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def whole(*, height, width):
    return 0, 0, height, width


def make(item, choose=whole, *, size, channels=3, interpolation='bicubic'):
    return views.view(item, choose, size=size, channels=channels, interpolation=interpolation)


def test_random_boxes_are_inside_and_within_scale_and_ratio():
    rng = np.random.default_rng(0)
    areas, log_ratios = [], []
    for _ in range(3000):
        top, left, h, w = views.random_box(
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
    box = functools.partial(views.random_box, rng, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
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
    assert views.centre_box(height=height, width=width, size=size, share=share) == expected


def test_view_of_a_photo_equals_pillow():
    data = photo_bytes()
    box = (40, 60, 300, 333)
    out, mask = make({'image': data}, lambda **_: box, size=(224, 224))
    image = Image.open(io.BytesIO(data)).crop((60, 40, 60 + 333, 40 + 300))
    difference = np.abs(out.astype(int) - np.asarray(image.resize((224, 224), Image.BICUBIC)))
    assert mask is None
    # Decoders may round colours apart by one; resizing adds at most one more.
    assert difference.mean() < 0.02 and difference.max() <= 2


@pytest.mark.parametrize('name', ['china.jpg', 'flower.jpg'])
@pytest.mark.parametrize('size', [(133, 200), (96, 130), (48, 48), (20, 30)])
def test_scaled_decoding_stays_close_to_pillow(name, size):
    """Decoding at 1/2, 1/4 or 1/8 averages in the JPEG's own frequencies, so that edges differ a
    little from resizing the full image."""
    data = photo_bytes(name)
    box = (10, 20, 400, 600)
    out, _ = make({'image': data}, lambda **_: box, size=size)
    image = Image.open(io.BytesIO(data)).crop((20, 10, 620, 410))
    expected = np.asarray(image.resize(size[::-1], Image.BICUBIC))
    difference = np.abs(out.astype(int) - expected)
    assert difference.mean() < 2.0
    assert np.quantile(difference, 0.999) < 16
    assert difference.max() < 32


def test_resolution_is_never_below_one_and_a_half_of_the_result(monkeypatch):
    used = []
    original = decode.decode

    def spy(data, *, channels, reduction=1):
        used.append(reduction)
        return original(data, channels=channels, reduction=reduction)

    monkeypatch.setattr(decode, 'decode', spy)
    data = photo_bytes()
    for side, reduction in ((134, 1), (133, 2), (67, 2), (66, 4), (34, 4), (33, 8), (10, 8)):
        make({'image': data}, lambda **_: (0, 0, 400, 400), size=(side, side))
        assert used[-1] == reduction
    make({'image': encoded(np.zeros((64, 64, 3), np.uint8))}, size=(8, 8))
    assert used[-1] == 1  # not a JPEG


def test_masks_follow_their_image():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (6, 5)), np.ones((8, 8), int)).astype(np.uint8)
    image = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    box = (8, 16, 32, 24)
    out, out_mask = make({'image': image, 'mask': mask}, lambda **_: box, size=(64, 48))
    np.testing.assert_array_equal(out_mask, np.kron(mask[8:40, 16:40], np.ones((2, 2), int)))
    # Away from edges, where the cubic kernel rings, image and mask say the same.
    assert np.mean((out[:, :, 0] > 127) == out_mask) > 0.99


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4)])
def test_arrays_of_any_channel_count(shape, channels):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out, _ = make({'image': image}, None, size=(9, 7), channels=channels)
    assert out.shape == (9, 7, channels) and out.dtype == np.uint8
    colour = image.reshape(9, 7, -1)[:, :, :3]
    if colour.shape[2] == channels:
        np.testing.assert_array_equal(out, colour)
    elif channels == 3:
        np.testing.assert_array_equal(out, np.repeat(colour, 3, axis=2))
    else:
        grey = colour @ np.array([0.299, 0.587, 0.114])
        assert np.abs(out[:, :, 0] - grey).max() <= 1


def test_without_crop_another_size_is_an_error_that_names_the_field():
    with pytest.raises(UserError, match='12x10.*data.image_size is 8x8.*data.crop.mode'):
        make({'image': np.zeros((12, 10, 3), np.uint8)}, None, size=(8, 8))
    with pytest.raises(UserError, match='427x640'):
        make({'image': photo_bytes()}, None, size=(8, 8))
