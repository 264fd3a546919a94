"""Photometric distortion against a loop over pixels, with the library's own HSV as reference."""

import dataclasses

import cv2
import numpy as np
import pytest

from mim_jax.data import PhotometricDistortion, Picture

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


class Draws:
    """A generator whose coins and uniform numbers are given, and noted."""

    def __init__(self, coins, last, numbers):
        self.coins, self.last, self.numbers = coins, last, list(numbers)

    def random(self, count=None):
        if count is None:
            return 0.0 if self.last else 0.9
        return np.where(self.coins, 0.1, 0.9)

    def uniform(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number <= high
        return number

    def integers(self, low, high):
        number = self.numbers.pop(0)
        assert low <= number < high
        return number


def scaled(value, factor, shift):
    return int(min(max(np.float32(value) * np.float32(factor) + np.float32(shift), 0), 255))


def by_pixel(image, coins, last, shift, contrast, saturation, turn):
    """In mmseg's order, one pixel at a time."""
    out = np.zeros_like(image)
    for place in np.ndindex(image.shape[:2]):
        pixel = image[place].tolist()
        if coins[0]:
            pixel = [scaled(x, 1.0, shift) for x in pixel]
        if coins[1] and not last:
            pixel = [scaled(x, contrast, 0.0) for x in pixel]
        for i in (2, 3):
            if coins[i]:
                one = np.array([[pixel]], np.uint8)
                hue, strength, value = cv2.cvtColor(one, cv2.COLOR_RGB2HSV)[0, 0].tolist()
                changed = (
                    (hue, scaled(strength, saturation, 0.0), value)
                    if i == 2
                    else ((hue + turn) % 180, strength, value)
                )
                one = np.array([[changed]], np.uint8)
                pixel = cv2.cvtColor(one, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        if coins[1] and last:
            pixel = [scaled(x, contrast, 0.0) for x in pixel]
        out[place] = pixel
    return out


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('number', range(16))
def test_every_combination_of_coins_equals_a_loop(number, last):
    coins = [bool(number >> i & 1) for i in range(4)]
    drawn = (-21.7, 1.37, 0.61, -13) if number % 3 else (18.2, 0.58, 1.44, 0)
    found = PhotometricDistortion().distort(Draws(coins, last, drawn), IMAGE)
    expected = by_pixel(IMAGE, coins, last, *drawn)
    np.testing.assert_array_equal(found, expected)
    assert any(coins) == bool((found != IMAGE).any())


def test_draws_cover_their_ranges_and_coins_are_fair():
    numbers = {'uniform': [], 'integers': []}
    generator = np.random.default_rng(0)

    class Spy:
        def random(self, *count):
            return generator.random(*count)

        def uniform(self, low, high):
            numbers['uniform'].append((low, high))
            return generator.uniform(low, high)

        def integers(self, low, high):
            numbers['integers'].append((low, high))
            return generator.integers(low, high)

    grey = np.full((1, 1, 3), 100, np.uint8)
    plain = PhotometricDistortion(contrast=(1.0, 1.0), saturation=(1.0, 1.0))
    values = [plain.distort(Spy(), grey)[0, 0, 0] for _ in range(2000)]
    assert set(numbers['uniform']) == {(-32.0, 32.0), (1.0, 1.0)}
    assert set(numbers['integers']) == {(-18, 18)}  # as NumPy's: without the upper end
    changed = np.array(values) != 100
    assert 0.45 < changed.mean() < 0.55 and min(values) < 72 and max(values) > 128
    never = dataclasses.replace(plain, probability=0.0)
    assert all((never.distort(Spy(), IMAGE) == IMAGE).all() for _ in range(20))


def test_what_lies_beyond_the_image_stays():
    always = PhotometricDistortion(probability=1.0, brightness=30.0)
    shown = Picture(image=IMAGE, maps={}, box=(0.5, 0.0, 0.75, 1.4))
    assert shown.inside == (slice(0, 6), slice(0, 5))
    changed = always(np.random.default_rng(1), shown)
    alone = always.distort(np.random.default_rng(1), np.ascontiguousarray(IMAGE[:6, :5]))
    np.testing.assert_array_equal(changed.image[:6, :5], alone)
    np.testing.assert_array_equal(changed.image[6:], IMAGE[6:])
    np.testing.assert_array_equal(changed.image[:, 5:], IMAGE[:, 5:])
    assert (alone != IMAGE[:6, :5]).any()


def test_grey_images_and_wrong_fields():
    always = PhotometricDistortion(probability=1.0)
    assert always.distort(np.random.default_rng(0), IMAGE[:, :, :1]).shape == (9, 7, 1)
    for field, value in (
        ('contrast', (1.5, 0.5)),
        ('saturation', (1.0,)),
    ):
        with pytest.raises(ValueError, match=field):
            PhotometricDistortion(**{field: value})
