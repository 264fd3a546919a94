"""Every corruption against NumPy: filters by FFT, kernels by loops, noise by its statistics."""

import jax
import numpy as np
import pytest

from mim_jax import keys
from mim_jax.corruptions import (
    CORRUPTIONS,
    Blur,
    Decoloring,
    Distortion,
    FrequencyFilter,
    LowResolution,
    Noise,
    RandomKernel,
)
from mim_jax.errors import UserError

COUNT = 24
IMAGES = np.random.default_rng(0).random((COUNT, 16, 16, 3)).astype(np.float32)
KEYS = keys.per_example(jax.random.key(1), COUNT)


def filtered_by_hand(image, kept):
    """`kept` [H,W] is placed as in a shifted spectrum."""
    shown = np.zeros_like(image)
    for channel in range(3):
        spectrum = np.fft.fftshift(np.fft.fft2(np.float64(image[..., channel])))
        spectrum *= kept
        shown[..., channel] = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    return np.clip(shown, 0, 1)


@pytest.mark.parametrize('outer', [None, 5.0])
def test_either_the_low_frequencies_are_kept_or_the_others(outer):
    high = np.zeros((16, 16))
    for row in range(16):
        for column in range(16):
            square = (row - 8) ** 2 + (column - 8) ** 2
            high[row, column] = square >= 3**2 and (outer is None or square < outer**2)
    corrupted = FrequencyFilter(radius=3.0, outer_radius=outer)(KEYS, IMAGES)
    lows = 0
    for image in range(COUNT):
        removed = np.fft.fftshift(corrupted.removed[image])
        low_kept = not removed[8, 8]
        lows += low_kept
        np.testing.assert_array_equal(removed, high if low_kept else 1 - high)
        expected = filtered_by_hand(IMAGES[image], 1 - removed)
        np.testing.assert_allclose(corrupted.images[image], expected, atol=1e-5)
    assert 4 < lows < COUNT - 4


def test_how_often_the_low_frequencies_are_kept():
    many = keys.per_example(jax.random.key(2), 2000)
    tiny = np.zeros((2000, 4, 4, 1), np.float32)
    removed = FrequencyFilter(radius=1.0, low_share=0.3)(many, tiny).removed
    assert abs(1 - removed[:, 0, 0].mean() - 0.3) < 0.05
    assert not FrequencyFilter(radius=1.0, low_share=1.0)(many, tiny).removed[:, 0, 0].any()


def cubic_weights(offset, a=-0.75):
    """PyTorch's bicubic kernel."""
    x = abs(offset)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resized_by_hand(line, size):
    """One line of pixels from four neighbours each; beyond the border the last pixel repeats."""
    out = np.zeros(size)
    for i in range(size):
        centre = (i + 0.5) * len(line) / size - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            out[i] += cubic_weights(j - centre) * line[min(max(j, 0), len(line) - 1)]
    return out


def test_low_resolution_goes_down_and_up_again():
    corrupted = LowResolution(factor=4)(KEYS[:2], IMAGES[:2])
    expected = np.float64(IMAGES[:2])
    for size in (4, 16):
        for axis in (1, 2):
            expected = np.apply_along_axis(resized_by_hand, axis, expected, size)
        expected = np.clip(expected, 0, 1)
    np.testing.assert_allclose(corrupted.images, expected, atol=1e-5)
    assert corrupted.removed is None


def test_blur_is_a_gaussian_on_a_square_with_reflected_borders():
    corrupted = Blur(sigma=(1.5, 1.5), sizes=(5,))(KEYS[:2], IMAGES[:2])
    kernel = np.zeros((5, 5))
    for row in range(5):
        for column in range(5):
            kernel[row, column] = np.exp(-((row - 2) ** 2 + (column - 2) ** 2) / 2 / 1.5**2)
    kernel /= kernel.sum()
    for image in range(2):
        around = np.pad(np.float64(IMAGES[image]), ((2, 2), (2, 2), (0, 0)), mode='reflect')
        for row in range(16):
            for column in range(16):
                seen = around[row : row + 5, column : column + 5]
                expected = (kernel[..., None] * seen).sum(axis=(0, 1))
                np.testing.assert_allclose(
                    corrupted.images[image, row, column], expected, atol=1e-5
                )


def test_the_width_of_a_blur_is_drawn_per_image():
    dot = np.zeros((COUNT, 16, 16, 1), np.float32)
    dot[:, 8, 8] = 1
    blurred = np.asarray(Blur(sizes=(3, 5, 7))(KEYS, dot).images)
    widths = {int((image[8, :, 0] > 0).sum()) for image in blurred}
    assert widths == {3, 5, 7}
    np.testing.assert_allclose(blurred.sum(axis=(1, 2, 3)), 1, rtol=1e-5)


def test_noise_has_the_deviation_asked_for_and_is_not_cut_off():
    noise = Noise(sigma=(10.0, 50.0))(KEYS, IMAGES).images - IMAGES
    deviations = noise.std(axis=(1, 2, 3)) * 255
    assert 9 < deviations.min() < 20 and 40 < deviations.max() < 55
    assert not np.allclose(noise[..., 0], noise[..., 1])
    grey = Noise(grey_share=1.0)(KEYS, IMAGES).images - IMAGES
    np.testing.assert_allclose(grey[..., 0], grey[..., 1], atol=1e-6)
    assert abs(grey.std() * 255 - 75) < 4 and (IMAGES + grey).min() < 0


def test_deviations_of_noise_can_follow_a_gamma_distribution():
    many, blank = keys.per_example(jax.random.key(2), 400), np.zeros((400, 16, 16, 3), np.float32)
    noise = np.asarray(Noise(gamma=(25.0, 3.0))(many, blank).images)
    # Beside 768 draws for each, deviations have mean 75 and themselves deviation 15.
    deviations = noise.std(axis=(1, 2, 3)) * 255
    assert abs(deviations.mean() - 75) < 4 * 15 / 20
    assert abs(deviations.std() - 15) < 3
    third = ((deviations - 75) ** 3).mean() / 15**3
    assert 0.05 < third < 0.9  # 2 / sqrt(25) = 0.4: not symmetric


def test_a_distortion_shows_what_is_nearer_to_a_point():
    images = IMAGES[:2, :, :11]
    corrupted = Distortion(magnitude=(0.1, 0.3))(KEYS[:2], images).images
    expected = np.zeros(images.shape)
    for image, key in enumerate(KEYS[:2]):
        for_centre, for_magnitude = jax.random.split(key)
        y, x = np.float64(jax.random.uniform(for_centre, (2, 1, 1), minval=-1.0)).ravel()
        magnitude = float(jax.random.uniform(for_magnitude, minval=0.1, maxval=0.3))
        for row in range(16):
            for column in range(11):
                v, u = 2 * row / 15 - 1, 2 * column / 10 - 1
                distance = np.hypot(v - y, u - x)
                at = (v + (y - v) * distance * magnitude + 1) / 2 * 15
                across = (u + (x - u) * distance * magnitude + 1) / 2 * 10
                top, left = min(int(at), 14), min(int(across), 9)
                down, right = at - top, across - left
                square = np.float64(images[image, top : top + 2, left : left + 2])
                line = square[:, 0] * (1 - right) + square[:, 1] * right
                expected[image, row, column] = line[0] * (1 - down) + line[1] * down
    np.testing.assert_allclose(corrupted, expected, atol=1e-4)


def test_a_random_kernel_mixes_neighbours_and_channels():
    corrupted = RandomKernel(size=3, deviation=0.1)(KEYS[:2], IMAGES[:2]).images
    expected = np.zeros((2, 16, 16, 3))
    for image, key in enumerate(KEYS[:2]):
        weights = 1 / 9 + 0.1 * np.float64(jax.random.normal(key, (9, 3, 3))).reshape(3, 3, 3, 3)
        around = np.full((18, 18, 3), 0.5)
        around[1:-1, 1:-1] = IMAGES[image]
        for row, column, to in np.ndindex(16, 16, 3):
            seen = around[row : row + 3, column : column + 3] - 0.5
            expected[image, row, column, to] = 0.5 + (seen * weights[..., to]).sum()
    np.testing.assert_allclose(corrupted, expected, atol=1e-5)


def test_weights_of_a_random_kernel_have_the_mean_of_an_average():
    dot = np.full((COUNT, 7, 7, 1), 0.5, np.float32)
    dot[:, 3, 3] = 1.5
    weights = np.asarray(RandomKernel()(KEYS, dot).images).ravel() - 0.5
    assert abs(weights.mean() - 1 / 49) < 4 * 0.02 / np.sqrt(weights.size)
    assert abs(weights.std() - 0.02) < 0.002


def test_colours_are_lost_in_a_sum_with_drawn_weights():
    corrupted = np.asarray(Decoloring(weights=(0.2, 0.5))(KEYS, IMAGES).images)
    for image, key in enumerate(KEYS):
        weights = np.float64(jax.random.uniform(key, (3,), minval=0.2, maxval=0.5))
        expected = sum(w * IMAGES[image, ..., channel] for channel, w in enumerate(weights))
        for channel in range(3):
            np.testing.assert_allclose(corrupted[image, ..., channel], expected, atol=1e-6)


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_an_image_is_corrupted_by_its_own_key_alone(name):
    options = {'frequencies': {'radius': 3.0}, 'blur': {'sizes': (3, 5)}}.get(name, {})
    corruption = CORRUPTIONS[name](**options)
    corruption.check((16, 16), 3)
    whole = corruption(KEYS, IMAGES).images
    np.testing.assert_allclose(corruption(KEYS[5:7], IMAGES[5:7]).images, whole[5:7], atol=1e-6)
    assert np.abs(whole - IMAGES).max() > 0.1


@pytest.mark.parametrize(
    ('corruption', 'message'),
    [
        (FrequencyFilter(radius=16), r'radius = 16: images of 32x24 pixels have 12 cycles'),
        (LowResolution(factor=25), 'factor = 25: of 32x24 pixels nothing'),
        (Blur(sizes=(49,)), 'a kernel of 49 is too wide'),
    ],
)
def test_images_that_are_too_small(corruption, message):
    with pytest.raises(UserError, match=message):
        corruption.check((32, 24), 3)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: FrequencyFilter(outer_radius=16.0), 'outer_radius = 16.0 must be above radius'),
        (lambda: Blur(sizes=(4,)), 'they must be odd'),
        (lambda: Blur(sigma=(2.0, 1.0)), 'sigma'),
        (lambda: Noise(sigma=(1.0,)), 'sigma'),
        (lambda: Noise(gamma=(25.0,)), 'shape, scale'),
        (lambda: RandomKernel(size=4), 'it must be odd'),
        (lambda: Distortion(magnitude=(0.2, 0.1)), 'magnitude'),
        (lambda: Decoloring(weights=(1.0,)), 'weights'),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_grey_images_have_no_colour_to_lose():
    Decoloring().check((32, 24), 3)
    with pytest.raises(UserError, match=r'decoloring, but the images of config.data.channels = 1'):
        Decoloring().check((32, 24), 1)
