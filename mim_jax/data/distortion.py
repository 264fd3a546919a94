"""Colours changed on the host: mmseg's photometric distortion."""

import dataclasses
from typing import Annotated

import cv2
import numpy as np

from mim_jax.ranges import NotNegative, Range, Share, check_ordered


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion:
    """Brightness, contrast, saturation, hue, each with its own coin; a transform of a `View`.

    Contrast comes second or last, by another coin. All values are uint8, cut off and rounded down
    after each change, hue and saturation those of OpenCV's 8-bit HSV. What lies beyond the image
    stays as it is. Grey images keep out saturation and hue.

    probability: of each of the four.
    brightness: a number from U[-x, x] is added to all values.
    contrast, saturation: all values, the saturations, are multiplied by a number from U[low, high].
    hue: an integer from -x to x - 1 is added to the hue, whose circle has 180 steps.

    `mim_jax.data.Colors` cannot say this: torchvision's brightness multiplies, its contrast turns
    about the mean, and one coin decides on all.
    """

    probability: Share = 0.5
    brightness: NotNegative = 32.0
    contrast: tuple[NotNegative, ...] = (0.5, 1.5)
    saturation: tuple[NotNegative, ...] = (0.5, 1.5)
    hue: Annotated[int, Range(0, 90)] = 18

    def __post_init__(self):
        check_ordered(self, 'contrast', 'saturation')

    def __call__(self, rng, picture):
        image = picture.image.copy()
        image[picture.inside] = self.distort(rng, np.ascontiguousarray(image[picture.inside]))
        return dataclasses.replace(picture, image=image)

    def distort(self, rng, image):
        """uint8 [H,W,C], changed."""
        # Everything is drawn, used or not: a draw does not depend on the coins before it.
        coins = rng.random(4) < self.probability
        last = rng.random() < 0.5
        shift = rng.uniform(-self.brightness, self.brightness)
        contrast, saturation = rng.uniform(*self.contrast), rng.uniform(*self.saturation)
        turn = int(rng.integers(-self.hue, max(self.hue, 1 - self.hue)))
        if coins[0]:
            image = _scaled(image, 1.0, shift)
        if coins[1] and not last:
            image = _scaled(image, contrast, 0.0)
        if image.shape[2] == 3 and coins[2:].any():
            image = self._recoloured(
                image, saturation if coins[2] else None, turn if coins[3] else None
            )
        if coins[1] and last:
            image = _scaled(image, contrast, 0.0)
        return image

    def _recoloured(self, image, saturation, turn):
        if saturation is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[:, :, 1] = _scaled(hsv[:, :, 1], saturation, 0.0)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if turn is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + turn) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return image


def _scaled(values, factor, shift):
    """uint8 to uint8: factor times the values plus a shift, cut off and rounded down."""
    changed = values.astype(np.float32) * np.float32(factor) + np.float32(shift)
    return np.clip(changed, 0, 255).astype(np.uint8)
