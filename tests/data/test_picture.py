"""One view of an item: decoding at the right size, maps, boxes, host transforms."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from mim_jax.data import Crop, View, decode, picture
from mim_jax.data.decode import CorruptImage


def photo_bytes(name='china.jpg'):
    from pathlib import Path

    import sklearn.datasets

    return Path(sklearn.datasets.__file__).with_name('images').joinpath(name).read_bytes()


def encoded(image, kind='png', **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def show(monkeypatch):
    """Function (item, box=…, size=…) -> Picture; a box is what the crop would have drawn."""

    def make(item, *, size, box=None, channels=3, seed=0, **view):
        if box is not None:
            monkeypatch.setattr(picture.crops, 'random_box', lambda rng, **_: box)
        crop = Crop(mode='random' if box is not None else 'resize')
        view = View(**{'crop': crop, 'image_size': size} | view)
        rng = np.random.default_rng(seed)
        return picture.show(picture.Item(item, channels=channels), view, rng)

    return make


def test_view_of_a_photo_equals_pillow(show):
    data = photo_bytes()
    box = (40, 60, 300, 333)
    out = show({'image': data}, box=box, size=(224, 224)).image
    image = Image.open(io.BytesIO(data)).crop((60, 40, 60 + 333, 40 + 300))
    difference = np.abs(out.astype(int) - np.asarray(image.resize((224, 224), Image.BICUBIC)))
    # Decoders may round colours apart by one; resizing adds at most one more.
    assert difference.mean() < 0.02 and difference.max() <= 2


@pytest.mark.parametrize('name', ['china.jpg', 'flower.jpg'])
@pytest.mark.parametrize('size', [(133, 200), (96, 130), (48, 48), (20, 30)])
def test_scaled_decoding_stays_close_to_pillow(show, name, size):
    """Decoding at 1/2, 1/4 or 1/8 averages in the JPEG's own frequencies, so that edges differ a
    little from resizing the full image."""
    data = photo_bytes(name)
    box = (10, 20, 400, 600)
    out = show({'image': data}, box=box, size=size).image
    image = Image.open(io.BytesIO(data)).crop((20, 10, 620, 410))
    expected = np.asarray(image.resize(size[::-1], Image.BICUBIC))
    difference = np.abs(out.astype(int) - expected)
    assert difference.mean() < 2.0
    assert np.quantile(difference, 0.999) < 16
    assert difference.max() < 32


def test_resolution_is_never_below_one_and_a_half_of_the_result(show, monkeypatch):
    used = []
    original = decode.decode

    def spy(data, *, channels, reduction=1):
        used.append(reduction)
        return original(data, channels=channels, reduction=reduction)

    monkeypatch.setattr(decode, 'decode', spy)
    data = photo_bytes()
    for side, reduction in ((134, 1), (133, 2), (67, 2), (66, 4), (34, 4), (33, 8), (10, 8)):
        show({'image': data}, box=(0, 0, 400, 400), size=(side, side))
        assert used[-1] == reduction
    show({'image': encoded(np.zeros((64, 64, 3), np.uint8))}, size=(8, 8))
    assert used[-1] == 1  # not a JPEG


def test_maps_follow_their_image(show):
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (6, 5)), np.ones((8, 8), int)).astype(np.uint8)
    image = np.repeat(mask[:, :, None] * 255, 3, axis=2)
    box = (8, 16, 32, 24)
    item = {'image': image, 'mask': encoded(mask)}
    out = show(item, box=box, size=(64, 48), maps=('mask',))
    out, out_mask = out.image, out.maps['mask']
    np.testing.assert_array_equal(out_mask, np.kron(mask[8:40, 16:40], np.ones((2, 2), int)))
    # Away from edges, where the cubic kernel rings, image and mask say the same.
    assert np.mean((out[:, :, 0] > 127) == out_mask) > 0.99


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('shape', [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4)])
def test_arrays_of_any_channel_count(show, shape, channels):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    crop = Crop(mode='none')
    out = show({'image': image}, size=(9, 7), channels=channels, crop=crop).image
    assert out.shape == (9, 7, channels) and out.dtype == np.uint8
    colour = image.reshape(9, 7, -1)[:, :, :3]
    if colour.shape[2] == channels:
        np.testing.assert_array_equal(out, colour)
    elif channels == 3:
        np.testing.assert_array_equal(out, np.repeat(colour, 3, axis=2))
    else:
        grey = colour @ np.array([0.299, 0.587, 0.114])
        assert np.abs(out[:, :, 0] - grey).max() <= 1


def test_a_map_of_another_resolution_lies_over_the_whole_image(show):
    mask = np.arange(16, dtype=np.int32).reshape(4, 4)
    item = {'image': np.zeros((8, 8, 3), np.uint8), 'mask': mask}
    shown = show(item, box=(0, 4, 4, 4), size=(4, 4), maps=('mask',))
    np.testing.assert_array_equal(shown.maps['mask'], np.kron(mask[:2, 2:], np.ones((2, 2))))


def test_maps_of_colours_are_no_maps(show):
    image = np.zeros((8, 8, 3), np.uint8)
    wide = cv2.imencode('.png', np.full((8, 8), 40000, np.uint16))[1].tobytes()
    shown = show({'image': image, 'map': wide}, size=(8, 8), maps=('map',))
    assert shown.maps['map'].max() == 40000
    for data, said in ((encoded(image), 'must be a grey image'), (b'nothing', 'no readable map')):
        with pytest.raises(CorruptImage, match=said):
            show({'image': image, 'map': data}, size=(8, 8), maps=('map',))


@pytest.mark.parametrize('crop', [{}, {'mode': 'centre', 'share': 0.5}, {'mode': 'simple'}])
def test_the_box_is_the_share_of_the_image_that_is_seen(show, crop):
    """Of an image whose values are its rows and columns, the view's first and last pixels."""
    height, width = 200, 120
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    shown = show({'image': image}, size=(40, 40), crop=Crop(**crop), seed=3)
    top, left, tall, wide = shown.box
    for axis, (start, extent, side) in enumerate(((top, tall, height), (left, wide, width))):
        seen = (start + extent * (np.arange(40) + 0.5) / 40) * side - 0.5
        line = shown.image[:, 20, 0] if axis == 0 else shown.image[20, :, 1]
        np.testing.assert_allclose(line[3:-3], seen[3:-3], atol=0.8)


@dataclasses.dataclass(frozen=True)
class Shift:
    """Shows the lower right quarter, at a random shift."""

    largest: int

    def __call__(self, rng, shown):
        by = int(rng.integers(self.largest + 1))
        side = shown.image.shape[0] // 2
        return shown.cropped((by, by, side, side))


def test_transforms_move_maps_and_boxes_with_the_image(show):
    mask = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((4, 4), np.uint8))
    item = {'image': np.repeat(mask[..., None], 3, axis=2), 'mask': mask}
    # Twice a part of the 24x24 pixels from (8, 4) on.
    options = dict(box=(8, 4, 24, 24), size=(24, 24), maps=('mask',))
    seen = [show(item, **options, transforms=(Shift(12),), seed=seed) for seed in range(8)]
    assert len({shown.box for shown in seen}) > 2
    for shown in seen:
        top, left, height, width = (round(32 * side) for side in shown.box)
        assert (height, width) == (12, 12) and top - 8 == left - 4
        part = mask[top : top + 12, left : left + 12]
        np.testing.assert_array_equal(shown.maps['mask'], np.kron(part, np.ones((2, 2))))
        assert np.mean(np.abs(shown.image[..., 0].astype(int) - shown.maps['mask'])) < 2
