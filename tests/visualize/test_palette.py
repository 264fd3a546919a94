"""Colours stay apart for readers with red-green blindness, by another model of it than theirs."""

import numpy as np
import pytest

from mim_jax.visualize import palette

# Viénot, Brettel and Mollon (1999): linear RGB to cones; what a cone that is missing would say.
TO_CONES = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
MISSING = {
    'none': np.eye(3),
    'long': np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    'medium': np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


def seen_without(cone, colors):
    """sRGB colours as a reader sees them to whom a kind of cones is missing."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = linear @ (np.linalg.inv(TO_CONES) @ MISSING[cone] @ TO_CONES).T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def least_distance(colors, cone):
    from skimage.color import deltaE_ciede2000, rgb2lab

    lab = rgb2lab(seen_without(cone, np.asarray(colors, float)))
    return (deltaE_ciede2000(lab[:, None], lab[None]) + 1000 * np.eye(len(lab))).min()


@pytest.mark.parametrize('cone', MISSING)
@pytest.mark.parametrize('count, least', [(7, 10), (12, 10), (24, 7), (48, 4)])
def test_colours_are_told_apart(cone, count, least):
    """By CIEDE2000, in which 2.3 is what is just noticed. Red and green of like lightness fail."""
    assert least_distance(palette.distinct(count), cone) > least


def test_the_measure_knows_what_is_not_told_apart():
    red_and_green = [[0.8, 0.2, 0.1], [0.42, 0.47, 0.0]]
    assert least_distance(red_and_green, 'none') > 30 > 10 > least_distance(red_and_green, 'medium')


def test_more_colours_begin_with_the_same_ones():
    many = palette.distinct(255)
    assert many.shape == (255, 3) and many.min() >= 0 and many.max() <= 1
    np.testing.assert_array_equal(many[:20], palette.distinct(20))
    assert len(np.unique(many, axis=0)) == 255


@pytest.mark.parametrize('cone', MISSING)
def test_what_differs_in_the_first_two_components_is_seen_by_everyone(cone):
    """Of steps of a third of their ranges; 2.3 is what is just noticed."""
    levels = np.linspace(0, 1, 4)
    grid = np.stack(np.meshgrid(levels, levels, [0.5], indexing='ij'), axis=-1).reshape(-1, 3)
    colors = palette.of_components(grid)
    assert colors.shape == (16, 3) and colors.min() >= 0 and colors.max() <= 1
    assert least_distance(colors, cone) > 2.3
    lightness = seen_without(cone, colors.astype(float)).reshape(4, 4, 3) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness, axis=0) > 0).all()
