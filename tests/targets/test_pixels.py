"""Pixel targets against NumPy."""

import numpy as np

from mim_jax.inputs import Inputs
from mim_jax.models import ViT
from mim_jax.targets import Pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
INPUTS = Inputs((8, 12), 3, MEAN, STD)
ENCODER = ViT(patch_size=(4, 4))
IMAGES = np.random.default_rng(0).random((2, 8, 12, 3), np.float32)


def patch_loop():
    normalised = (IMAGES - np.array(MEAN)) / np.array(STD)
    return np.stack(
        [
            normalised[:, y : y + 4, x : x + 4].reshape(2, -1)
            for y in range(0, 8, 4)
            for x in range(0, 12, 4)
        ],
        axis=1,
    )


def test_raw_pixels_are_the_students_patches():
    target = Pixels(normalize=False).bind(ENCODER, INPUTS)({}, IMAGES)
    np.testing.assert_allclose(target, patch_loop(), atol=1e-5)


def test_normalised_patches_use_the_unbiased_variance():
    target = Pixels(normalize=True).bind(ENCODER, INPUTS)({}, IMAGES)
    patches = patch_loop()
    expected = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
        patches.var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(target, expected, atol=1e-4)


def test_a_perfect_prediction_shows_the_image():
    for normalize in (True, False):
        target = Pixels(normalize=normalize).bind(ENCODER, INPUTS)
        shown = target.to_images(target({}, IMAGES), IMAGES)
        np.testing.assert_allclose(shown, IMAGES, atol=1e-5)
