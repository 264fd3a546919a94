"""Colours on the device, against torchvision's and Pillow's definitions in NumPy and libraries."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
from PIL import Image, ImageOps
from scipy import ndimage

from mim_jax.data import Colors, colors

GREY = np.array([0.299, 0.587, 0.114])


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def images(n=6, size=(5, 7), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, channels)).astype(np.float32) / 255


def jittered(x, **strengths):
    draws = jax.random.uniform(jax.random.key(1), (len(x), 3))
    return np.asarray(colors.jitter(x, Colors(**strengths), draws, keys(len(x))))


def recolored(x, **chances):
    return np.asarray(colors.recolor(x, Colors(**chances), keys(len(x))))


@pytest.mark.parametrize('which', ['brightness', 'contrast', 'saturation'])
def test_each_property_is_a_blend_with_its_neutral_image(which):
    """torchvision: result = clip(factor * image + (1 - factor) * neutral), where the neutral
    image is black, the mean grey value, or the grey image; factor in [1 - x, 1 + x]."""
    x, strength = images(200, seed=1), 0.4
    out = jittered(x, **{which: strength})
    grey = (x @ GREY)[..., None]
    neutral = {
        'brightness': np.zeros_like(x),
        'contrast': grey.mean((1, 2, 3), keepdims=True),
        'saturation': grey,
    }[which]
    factors = []
    for image, centre, result in zip(x, np.broadcast_to(neutral, x.shape), out, strict=True):
        inside = (result > 0) & (result < 1) & (np.abs(image - centre) > 0.05)
        factor = (result - centre)[inside] / (image - centre)[inside]
        assert np.ptp(factor) < 1e-4
        np.testing.assert_allclose(
            result, np.clip(factor[0] * image + (1 - factor[0]) * centre, 0, 1), atol=1e-4
        )
        factors.append(factor[0])
    assert 1 - strength <= min(factors) < 1 - 0.9 * strength
    assert 1 + 0.9 * strength < max(factors) <= 1 + strength
    assert abs(np.mean(factors) - 1.0) < 0.07


def test_a_strength_above_one_draws_no_negative_factor():
    out = jittered(np.full((300, 2, 2, 3), 0.4, np.float32), brightness=2.0)
    assert out.min() >= 0 and out.max() <= 1
    assert np.median(out) > 0.4  # U[0, 3] has its median at 1.5


def test_turning_the_hue_is_a_turn_in_hsv():
    x = images(9, seed=2)
    x[0, 0] = x[0, 0].mean(axis=-1, keepdims=True)  # grey has no hue
    x[1, 0], x[2, 0] = 0.0, 1.0
    turn = np.linspace(-0.5, 0.5, 9).astype(np.float32)
    out = np.asarray(colors.turn_hue(x, jnp.asarray(turn)))
    hsv = skimage.color.rgb2hsv(x)
    hsv[..., 0] = (hsv[..., 0] + turn[:, None, None]) % 1.0
    np.testing.assert_allclose(out, skimage.color.hsv2rgb(hsv), atol=2e-6)
    h, s, v = colorsys.rgb_to_hsv(*map(float, x[7, 2, 3]))
    by_hand = colorsys.hsv_to_rgb((h + float(turn[7])) % 1.0, s, v)
    np.testing.assert_allclose(out[7, 2, 3], by_hand, atol=2e-6)


def test_hues_are_the_same_however_the_compiler_puts_the_steps_together():
    x, given = (
        images(32, size=(12, 12)),
        Colors(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    )

    def jitter(x, keys):
        draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
        return colors.jitter(x, given, draws, keys)

    together, apart = jax.jit(jitter)(x, keys(32)), jitter(x, keys(32))
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_hues_are_turned_by_as_much_as_said():
    x = np.tile(np.float32([1.0, 0.0, 0.0]), (400, 1, 1, 1))  # red: hue 0
    hue = skimage.color.rgb2hsv(jittered(x, hue=0.1))[:, 0, 0, 0]
    turn = (hue + 0.5) % 1.0 - 0.5
    assert -0.1 <= turn.min() < -0.09 and 0.09 < turn.max() <= 0.1
    assert abs(turn.mean()) < 0.01


def test_the_whole_jitter_happens_with_its_probability():
    x = images(600)
    out = jittered(x, brightness=0.4, hue=0.1, probability=0.8)
    unchanged = (out == x).all((1, 2, 3))
    assert abs(unchanged.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 600)
    assert (jittered(x, brightness=0.4, probability=0.0) == x).all()


def test_grey_is_pillows():
    x = images(4, size=(16, 16))
    out = recolored(x, grey=1.0)
    for image, result in zip(x, out, strict=True):
        assert np.ptp(result, axis=2).max() == 0
        expected = np.asarray(Image.fromarray((255 * image).round().astype(np.uint8)).convert('L'))
        assert np.abs(255 * result[..., 0] - expected).max() <= 0.51


def test_solarisation_is_pillows():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    out = recolored(x.astype(np.float32) / 255, solarize=1.0)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(x[0])))
    np.testing.assert_array_equal((255 * out[0]).round(), expected)


@pytest.mark.parametrize('size', [(40, 31), (7, 5), (1, 9)])
@pytest.mark.parametrize('sigma', [0.3, 1.0, 2.0])
def test_blur_is_a_gaussian_with_reflected_edges(size, sigma):
    x = images(2, size=size)
    out = recolored(x, blur=1.0, blur_sigma=(sigma, sigma))
    reach = np.ceil(3 * sigma)
    for image, result in zip(x, out, strict=True):
        for channel in range(3):
            expected = ndimage.gaussian_filter(
                image[..., channel].astype(np.float64), sigma, mode='mirror', radius=int(reach)
            )
            np.testing.assert_allclose(result[..., channel], expected, atol=2e-6)


def test_sigmas_are_drawn_between_their_bounds():
    x = np.zeros((300, 1, 41, 1), np.float32)
    x[:, :, 20] = 1.0
    out = recolored(x, blur=1.0, blur_sigma=(0.5, 2.0))[:, 0, :, 0]
    sigma = np.sqrt((out * (np.arange(41) - 20) ** 2).sum(axis=1))
    assert 0.4 < sigma.min() < 0.6 and 1.9 < sigma.max() < 2.01
    assert abs(sigma.mean() - 1.25) < 0.1


def kinds(x, out):
    """Per image: which of unchanged, grey, blurred, solarised it is."""
    grey = np.broadcast_to((x @ GREY)[..., None], x.shape)
    solar = np.where(x < 0.5, x, 1 - x)
    known = [np.isclose(out, y, atol=1e-5).all((1, 2, 3)) for y in (x, grey, solar)]
    return np.array([*known[:2], ~np.any(known, axis=0), known[2]])


def test_exactly_one_of_three_by_their_weights():
    x = images(900)
    found = kinds(x, recolored(x, one_of=True, grey=1.0, blur=2.0, solarize=3.0, blur_sigma=(1, 1)))
    assert (found.sum(axis=0) == 1).all() and not found[0].any()
    np.testing.assert_allclose(found[1:].mean(axis=1), [1 / 6, 2 / 6, 3 / 6], atol=0.07)
    found = kinds(x, recolored(x, one_of=True, grey=1.0, solarize=1.0))
    assert (found[1] ^ found[3]).all()


def test_otherwise_each_has_a_coin_of_its_own():
    x = images(900)
    out = recolored(x, grey=0.3, solarize=0.4)
    both = np.isclose(out, jnp.where(x @ GREY < 0.5, x @ GREY, 1 - x @ GREY)[..., None], atol=1e-5)
    found = kinds(x, out)
    expected = [0.7 * 0.6, 0.3 * 0.6, 0.7 * 0.4, 0.3 * 0.4]
    measured = [found[0], found[1], found[3], both.all((1, 2, 3)) & found[2]]
    np.testing.assert_allclose([m.mean() for m in measured], expected, atol=0.07)


def test_grey_images_ignore_what_needs_colours():
    x = images(channels=1)
    np.testing.assert_array_equal(jittered(x, saturation=0.4, hue=0.2), x)
    np.testing.assert_array_equal(recolored(x, grey=1.0), x)
