"""Coloured masks against SciPy's Gaussian filter on large maps, cut out and sorted in NumPy."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mim_jax.config import build
from mim_jax.errors import UserError
from mim_jax.masking import ColoredMasking

KEYS = jax.random.split(jax.random.key(0), 3)


def noise_by_hand(keys, color, *, grid, narrow=0.5, wide=2.0):
    """Filtered noise [B,h,w]: maps with a margin of 4 deviations, of which the middle is kept."""
    margin = int(4 * wide + 0.5)
    shape = tuple(size + 2 * margin for size in grid)
    maps = []
    for key in keys:
        white = np.float64(jax.random.normal(key, shape))
        middle, broad = (gaussian_filter(white, sigma, truncate=4.0) for sigma in (narrow, wide))
        colors = {
            'red': broad,
            'blue': white - broad,
            'green': middle - broad,
            'purple': white - (middle - broad),
            'white': white,
        }
        maps.append(colors[color][margin:-margin, margin:-margin])
    return np.stack(maps)


def mask_by_hand(noise, num_visible):
    mask = np.ones((len(noise), noise[0].size), bool)
    for row, values in zip(mask, noise, strict=True):
        row[sorted(range(values.size), key=lambda n: -values.flat[n])[:num_visible]] = False
    return mask


@pytest.mark.parametrize('color', ['red', 'blue', 'green', 'purple', 'white'])
def test_the_largest_of_filtered_noise_stay_visible(color):
    masking, grid = ColoredMasking(color=color), (14, 10)
    expected = noise_by_hand(KEYS, color, grid=grid)
    found = masking.noise(KEYS, grid=grid)
    np.testing.assert_allclose(found, expected.reshape(3, -1), atol=1e-5)
    mask = masking(KEYS, grid=grid)
    np.testing.assert_array_equal(mask, mask_by_hand(expected, 35))
    assert mask.dtype == bool and masking.count(grid) == 105


def test_other_deviations():
    expected = noise_by_hand(KEYS, 'green', grid=(6, 7), narrow=0.8, wide=1.3)
    found = ColoredMasking(narrow=0.8, wide=1.3).noise(KEYS, grid=(6, 7))
    np.testing.assert_allclose(found, expected.reshape(3, -1), atol=1e-5)


def test_an_image_is_masked_by_its_own_key():
    whole = np.asarray(ColoredMasking()(KEYS, grid=(14, 10)))
    np.testing.assert_array_equal(ColoredMasking()(KEYS[2:], grid=(14, 10)), whole[2:])
    assert len(np.unique(whole, axis=0)) == 3


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'color': 'pink'}, "color = 'pink'"),
        ({'narrow': 2.0}, 'narrow = 2.0 must be below wide = 2.0'),
        ({'wide': 1e6}, 'wide'),
        ({'narrow': 0.0}, 'narrow'),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        build(ColoredMasking, fields, path='objective.masking')
