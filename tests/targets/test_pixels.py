"""Pixel targets against NumPy."""

import numpy as np
import pytest

from mim_jax.errors import UserError
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


def test_channels_can_be_normalised_apart():
    target = Pixels(normalize=True, normalize_over='channel').bind(ENCODER, INPUTS)({}, IMAGES)
    expected = patch_loop().reshape(2, 6, 16, 3)
    for image, patch, channel in np.ndindex(2, 6, 3):
        values = expected[image, patch, :, channel]
        values -= values.mean()
        values /= np.sqrt((values**2).sum() / 15)
    np.testing.assert_allclose(target, expected.reshape(2, 6, 48), atol=1e-4)


def test_single_pixels_have_no_deviation():
    with pytest.raises(UserError, match='normalize_over = channel, but of patches of a single'):
        Pixels(normalize=True, normalize_over='channel').bind(ViT(patch_size=(1, 1)), INPUTS)


@pytest.mark.parametrize('over', ['patch', 'channel'])
def test_a_perfect_prediction_shows_the_image(over):
    for normalize in (True, False):
        target = Pixels(normalize=normalize, normalize_over=over).bind(ENCODER, INPUTS)
        shown = target.to_images(target({}, IMAGES), IMAGES)
        np.testing.assert_allclose(shown, IMAGES, atol=1e-5)


def test_a_borrowed_mean_is_said_and_what_was_predicted_is_shown():
    """Predictions that know nothing make an image with the patches' true means: it looks right. The
    prediction itself is shown as the nothing that it is.
    """
    target = Pixels(normalize=True).bind(ENCODER, INPUTS)
    raw, image = target.panels(np.zeros_like(target({}, IMAGES)), IMAGES)
    assert raw.title == 'prediction (normalised)' and 'true mean' in image.title
    np.testing.assert_array_equal(raw.values, 0.5)
    seen = (np.asarray(image.values) - np.array(MEAN)) / np.array(STD)
    truth = patch_loop().mean(axis=-1).reshape(2, 2, 3)
    np.testing.assert_allclose(
        seen, truth.repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3), atol=1e-4
    )


def test_pixels_as_they_are_need_no_second_panel():
    target = Pixels(normalize=False).bind(ENCODER, INPUTS)
    (panel,) = target.panels(target({}, IMAGES), IMAGES)
    assert panel.title == 'reconstruction'
    np.testing.assert_allclose(panel.values, IMAGES, atol=1e-5)
