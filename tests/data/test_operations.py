"""Every operation of RandAugment against a formula of its own in NumPy, not Pillow's code."""

import math

import numpy as np
import pytest

from mim_jax.data import operations
from mim_jax.data.operations import Resampling

FILL = (124, 116, 104)
BILINEAR, BICUBIC = Resampling('bilinear', FILL), Resampling('bicubic', FILL)


def image(channels=3, size=(14, 18), seed=0):
    """Smooth colours, with every level somewhere between 20 and 220, and a few single pixels."""
    rng = np.random.default_rng(seed)
    waves = np.add.outer(np.linspace(0, 4, size[0]), np.linspace(0, 5, size[1]))
    picture = 120 + 100 * np.sin(waves[..., None] + np.arange(channels))
    picture[rng.integers(0, size[0], 9), rng.integers(0, size[1], 9)] += rng.integers(-20, 20)
    return np.clip(picture, 20, 235).astype(np.uint8)


def by_table(picture, table):
    return np.asarray(table, np.uint8)[picture]


def levels():
    return np.arange(256)


def greys(picture):
    """ITU-R 601 in Pillow's fixed point, rounded."""
    if picture.shape[2] == 1:
        return picture[..., 0].astype(int)
    weights = np.array([19595, 38470, 7471])
    return (picture.astype(int) @ weights + 0x8000) >> 16


def blended(degenerate, picture, factor):
    """degenerate + factor (picture - degenerate), cut off (not rounded) to whole levels."""
    value = degenerate + factor * (picture.astype(np.float64) - degenerate)
    return np.clip(value, 0, 255).astype(np.uint8)


def same(found, expected, *, within=0):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= within


@pytest.mark.parametrize('channels', [3, 1])
def test_levels(channels):
    picture = image(channels)
    operate = {
        operations.invert: (None, 255 - levels()),
        operations.posterize: (1, levels() // 128 * 128),
        operations.solarize: (26, np.where(levels() < 26, levels(), 255 - levels())),
        operations.solarize_add: (
            99,
            np.where(levels() < 128, np.minimum(levels() + 99, 255), levels()),
        ),
    }
    for operation, (argument, table) in operate.items():
        same(operation(picture, argument, BICUBIC), by_table(picture, table))
    same(operations.posterize(picture, 0, BICUBIC), np.zeros_like(picture))
    same(operations.posterize(picture, 8, BICUBIC), picture)
    same(operations.posterize(picture, 3, BICUBIC), picture // 32 * 32)
    same(operations.solarize(picture, 256, BICUBIC), picture)


@pytest.mark.parametrize('channels', [3, 1])
def test_auto_contrast_stretches_each_channel(channels):
    picture = image(channels)
    low, high = picture.min((0, 1)), picture.max((0, 1))
    expected = (picture - low.astype(float)) * (255 / (high - low.astype(float)))
    found = operations.auto_contrast(picture, None, BICUBIC)
    same(found, np.clip(expected, 0, 255).astype(np.uint8), within=1)
    assert (found.min((0, 1)) == 0).all() and (found.max((0, 1)) >= 254).all()


@pytest.mark.parametrize('channels', [3, 1])
def test_equalize_makes_levels_equally_frequent(channels):
    """Level l becomes (pixels below it + half a step) // step, a step being the 255th part of all
    pixels but those of the highest level.
    """
    picture = image(channels, size=(40, 44))
    expected = np.empty_like(picture)
    for channel in range(channels):
        values = picture[..., channel]
        step = (values.size - (values == values.max()).sum()) // 255
        below = np.array([(values < level).sum() for level in range(256)])
        expected[..., channel] = np.minimum((below + step // 2) // step, 255)[values]
    assert np.abs(expected.astype(int) - picture).max() > 30
    same(operations.equalize(picture, None, BICUBIC), expected)
    flat = np.full((4, 4, channels), 77, np.uint8)
    same(operations.equalize(flat, None, BICUBIC), flat)


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('factor', [0.1, 0.19, 1.0, 1.81, 1.9])
def test_enhancements_blend_with_what_has_none(channels, factor):
    picture = image(channels)
    grey = greys(picture)
    mean = int(grey.mean() + 0.5)
    smooth = picture.astype(float)
    for row, column in np.ndindex(picture.shape[0] - 2, picture.shape[1] - 2):
        window = picture[row : row + 3, column : column + 3].astype(float)
        kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., None] / 13
        smooth[row + 1, column + 1] = np.floor((window * kernel).sum((0, 1)) + 0.5)
    nothing = {
        operations.color: np.repeat(grey[..., None], channels, axis=2).astype(float),
        operations.contrast: np.full(picture.shape, float(mean)),
        operations.brightness: np.zeros(picture.shape),
        operations.sharpness: smooth,
    }
    for operation, degenerate in nothing.items():
        found = operation(picture, factor, BICUBIC)
        # In float32 a level may end just below a whole number that it reaches in float64.
        same(found, blended(degenerate, picture, factor), within=1)
        share = (found == blended(degenerate, picture, factor)).mean()
        assert share > 0.98
    same(operations.color(picture, 1.0, BICUBIC), picture)


def cubic(x, a=-1.0):
    """Keys' kernel; -1 where Pillow transforms an image, not -0.5 as where it resizes one."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def moved(picture, where, source):
    """Each pixel from the place (x, y) = source(x, y) in continuous coordinates, in which the first
    pixel's centre is (0.5, 0.5); filled where that is outside; the edge pixels continue.
    """
    height, width, channels = picture.shape
    reach, weight = {
        'bilinear': (1, lambda d: max(0.0, 1 - abs(d))),
        'bicubic': (2, cubic),
    }[where.interpolation]
    out = np.empty_like(picture)
    for row, column in np.ndindex(height, width):
        x, y = source(column + 0.5, row + 0.5)
        if not (0 <= x < width and 0 <= y < height):
            out[row, column] = where.fill[:channels]
            continue
        x, y = x - 0.5, y - 0.5
        total = np.zeros(channels)
        for j in range(math.floor(y) - reach + 1, math.floor(y) + reach + 1):
            for i in range(math.floor(x) - reach + 1, math.floor(x) + reach + 1):
                pixel = picture[min(max(j, 0), height - 1), min(max(i, 0), width - 1)]
                total += weight(i - x) * weight(j - y) * pixel
        out[row, column] = np.clip(total + 1e-9, 0, 255)  # cut off, not rounded
    return out


@pytest.mark.parametrize('where', [BILINEAR, BICUBIC], ids=lambda w: w.interpolation)
@pytest.mark.parametrize('channels', [3, 1])
def test_moving(channels, where):
    picture = image(channels)
    where = Resampling(where.interpolation, FILL[:channels])
    height, width, _ = picture.shape
    turn = math.radians(27.0)

    def rotated(x, y):
        # Counter-clockwise as seen, with y pointing down: what comes here lies clockwise.
        dx, dy = x - width / 2, y - height / 2
        return (
            width / 2 + math.cos(turn) * dx - math.sin(turn) * dy,
            height / 2 + math.sin(turn) * dx + math.cos(turn) * dy,
        )

    cases = {
        operations.shear_x: (0.27, lambda x, y: (x + 0.27 * y, y)),
        operations.shear_y: (-0.27, lambda x, y: (x, y - 0.27 * x)),
        operations.translate_x: (-0.405, lambda x, y: (x - 0.405 * width, y)),
        operations.translate_y: (0.405, lambda x, y: (x, y + 0.405 * height)),
        operations.rotate: (27.0, rotated),
    }
    for operation, (argument, source) in cases.items():
        found, expected = operation(picture, argument, where), moved(picture, where, source)
        same(found, expected, within=1)
        assert (found == expected).mean() > 0.9
        filled = (expected == np.array(where.fill)).all(axis=2).mean()
        assert filled > 0.05, operation.__name__  # something came in from outside
