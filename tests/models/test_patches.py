"""Patches: order, inverse, and the refusal of images that do not divide."""

import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.models import patch_grid, patchify, unpatchify


def test_order_is_row_column_channel():
    images = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    patches = np.asarray(patchify(images, patch_size=(3, 2)))
    assert patches.shape == (2, 8, 18)
    for row in range(2):
        for column in range(4):
            cut = images[:, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(patches[:, row * 4 + column], cut.reshape(2, -1))
    np.testing.assert_array_equal(unpatchify(patches, grid=(2, 4), patch_size=(3, 2)), images)


def test_an_image_that_does_not_divide_is_a_users_mistake():
    assert patch_grid((224, 192), (16, 16)) == (14, 12)
    with pytest.raises(UserError, match='225x224 pixels .* 16x16 patches'):
        patch_grid((225, 224), (16, 16))


def test_more_patches_than_any_attention_takes_are_told():
    assert patch_grid((4096, 4096), (16, 16)) == (256, 256)
    with pytest.raises(UserError, match='has 65,792 patches of 16x16, more than 65,536'):
        patch_grid((4112, 4096), (16, 16))
