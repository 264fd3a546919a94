"""Scenes of handwritten digits: a labelled image set that needs no download.

scikit-learn's 1,797 real handwritten digits (8x8 grey, UCI) are composed by a seeded generator
into small colour scenes: random position, size, slant and colours (ink lighter than its ground),
on a textured background with strokes as clutter. Training and test scenes are made from disjoint
digits.
"""

import dataclasses

import cv2
import numpy as np

from mim_jax.data.fields import Field, image_fields
from mim_jax.errors import UserError
from mim_jax.ranges import Count

# Of the 1,797 digits, those whose scenes are for testing.
NUM_TEST_DIGITS = 497
SIDES = (32, 64)  # pixels, between which the scenes are what they are made to be
SPLITS = {'train': 0, 'test': 1}  # the number is part of a scene's seed
GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Config section of the embedded scenes, which have `data.image_size`: how many there are."""

    num_train: Count = 8192
    num_test: Count = 2048

    def open(self, data, *, split):
        """The scenes of a split; see `EmbeddedScenes`."""
        sizes = {'num_train': self.num_train, 'num_test': self.num_test}
        return EmbeddedScenes(split=split, size=tuple(data.image_size), **sizes)

    def assumed_fields(self):
        return EmbeddedScenes.fields


class EmbeddedScenes:
    """The scenes of one split; item i is a function of (split, i, size) alone.

    Args:
      split: 'train' or 'test'.
      size: (height, width) in pixels, 32 to 64 each.
      num_train, num_test: how many scenes the splits have.

    Items: image uint8 [H,W,3], label int (the digit), mask uint8 [H,W] (1 on the digit).

    Raises:
      UserError: another split or size.
    """

    fields = (*image_fields(10), Field('mask', 'map', dtype='uint8', num_classes=2))

    def __init__(self, *, split, size=(48, 48), num_train=8192, num_test=2048):
        if split not in SPLITS:
            raise UserError(
                f"config.data.source 'embedded' has the splits train and test, not {split!r}: "
                f'set config.data.split or config.data.eval_split'
            )
        if not all(SIDES[0] <= side <= SIDES[1] for side in size):
            raise UserError(
                f'config.data.image_size is {size[0]}x{size[1]}: the embedded scenes have '
                f'{SIDES[0]} to {SIDES[1]} pixels a side; set another size, or config.data.source'
            )
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Unlike a plain cut, shuffling keeps writers (who come in runs) in both parts alike.
        order = np.random.default_rng(0).permutation(len(digits.target))
        part = order[:NUM_TEST_DIGITS] if split == 'test' else order[NUM_TEST_DIGITS:]
        self._digits = (digits.images[part] / 16.0).astype(np.float32)
        self._labels = digits.target[part].astype(np.int32)
        self._split = split
        self._size = tuple(size)
        self._length = num_test if split == 'test' else num_train

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        rng = np.random.default_rng((SPLITS[self._split], index))
        digit = int(rng.integers(len(self._digits)))
        image, mask = compose(self._digits[digit], rng, size=self._size)
        return {'image': image, 'label': int(self._labels[digit]), 'mask': mask}

    def describe(self, index):
        return f'embedded scene {index} of {self._split}'


def compose(digit, rng, *, size):
    """One scene.

    Args:
      digit: float32 [8,8] in [0, 1].
      rng: NumPy generator, the scene's only source of chance.
      size: (height, width).

    Returns:
      uint8 [H,W,3] and the digit's mask uint8 [H,W].
    """
    background, ink = _dark_and_light(rng)
    scene = _texture(background, rng, size)
    _clutter(scene, background, rng)
    alpha = _placed(digit, rng, size)
    scene += alpha[:, :, None] * (ink.astype(np.float32) - scene)
    scene += rng.standard_normal(scene.shape, np.float32) * np.float32(0.03)
    image = np.clip(scene * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return image, (alpha > 0.5).astype(np.uint8)


def _dark_and_light(rng):
    """Two random colours, the second one lighter. Digits darker than their ground as well would
    take a small network several times as long to learn, and say nothing more."""
    while True:
        dark, light = rng.uniform(0.0, 1.0, (2, 3))
        if GREY @ (light - dark) >= 0.3:
            return dark, light


def _contrasting(color, rng, *, least):
    """A colour at least that far (Euclidean, in the unit cube) from another."""
    while True:
        other = rng.uniform(0.0, 1.0, 3)
        if np.linalg.norm(other - color) >= least:
            return other


def _texture(color, rng, size):
    """Cloudy colour with stripes, float32 [H,W,3]."""
    cells = rng.integers(2, 7, 2)
    clouds = rng.uniform(-0.18, 0.18, (*cells, 3)).astype(np.float32)
    scene = cv2.resize(clouds, size[::-1], interpolation=cv2.INTER_CUBIC)
    angle, wavelength, phase = rng.uniform((0, 4, 0), (np.pi, 16, 2 * np.pi))
    wave = 2 * np.pi / wavelength
    rows = np.arange(size[0], dtype=np.float32)[:, None] * np.float32(wave * np.sin(angle))
    columns = np.arange(size[1], dtype=np.float32) * np.float32(wave * np.cos(angle))
    stripes = np.sin(rows + columns + np.float32(phase))
    scene += stripes[:, :, None] * rng.uniform(-0.1, 0.1, 3).astype(np.float32)
    scene += color.astype(np.float32)
    return scene


def _clutter(scene, background, rng):
    """Draws a few thin strokes and spots into the scene, never as strong as a digit."""
    height, width = scene.shape[:2]
    for _ in range(rng.integers(2, 6)):
        color = background + 0.75 * (_contrasting(background, rng, least=0.4) - background)
        start = rng.uniform(0, 1, 2) * (width, height)
        length, angle = rng.uniform((5, 0), (18, 2 * np.pi))
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        points = [tuple(int(round(16 * v)) for v in point) for point in (start, end)]
        if rng.uniform() < 0.6:
            thickness = int(rng.integers(1, 3))
            cv2.line(scene, *points, color.tolist(), thickness, cv2.LINE_8, 4)
        else:
            radius = int(16 * rng.uniform(1, 3))
            cv2.circle(scene, points[0], radius, color.tolist(), -1, cv2.LINE_8, 4)


def _placed(digit, rng, size):
    """The digit's opacity float32 [H,W] at a random place, size and slant."""
    short = min(size)
    side = rng.uniform(0.5, 0.75) * short  # of the 8x8 cell; the ink is a little smaller
    angle = np.deg2rad(rng.uniform(-20, 20))
    stretch = rng.uniform(0.85, 1.15)
    cos, sin = np.cos(angle) * side / 8, np.sin(angle) * side / 8
    linear = np.array([[cos * stretch, -sin], [sin * stretch, cos]])
    reach = 0.5 * side  # keeps the ink inside
    centre = [rng.uniform(reach, extent - reach) for extent in size[::-1]]
    shift = np.asarray(centre) - linear @ (3.5, 3.5)
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    alpha = cv2.warpAffine(digit, matrix, size[::-1], flags=cv2.INTER_CUBIC)
    # Interpolated 8x8 pixels are blurred; a steep ramp gives a pen's edge.
    return np.clip(2.5 * (alpha - 0.3), 0.0, 1.0)
