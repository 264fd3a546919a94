"""Device side: against torchvision's definitions written in NumPy, and per-example keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.data import augment as augment_lib

GREY = np.array([0.299, 0.587, 0.114])


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def images(n=6, size=(5, 7), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, channels), dtype=np.uint8)


def test_without_options_is_only_a_change_of_range():
    x = images()
    out = augment_lib.augment(keys(6), x)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, x / 255.0, rtol=1e-6)


def test_flip_frequency_and_consistency_with_masks():
    x = images(400, (3, 4))
    masks = x[..., 0] > 127
    out, out_masks = augment_lib.augment(keys(400), x, flip=0.3, masks=masks)
    same = np.isclose(out, x / 255.0, atol=1e-6).all((1, 2, 3))
    flipped = np.isclose(out, x[:, :, ::-1] / 255.0, atol=1e-6).all((1, 2, 3))
    assert np.all(same ^ flipped)
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    expected = np.where(flipped[:, None, None], masks[:, :, ::-1], masks)
    np.testing.assert_array_equal(out_masks, expected)


def test_draws_belong_to_the_example_not_to_the_batch():
    x, k = images(8), keys(8)
    options = dict(flip=0.5, color_jitter=(0.4, 0.4, 0.4))
    whole = jax.jit(lambda k, x: augment_lib.augment(k, x, **options))(k, x)
    halves = [augment_lib.augment(k[s], x[s], **options) for s in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    assert len({float(v) for v in whole.mean((1, 2, 3))}) == 8


@pytest.mark.parametrize('which', [0, 1, 2])
def test_each_property_is_a_blend_with_its_neutral_image(which):
    """torchvision: result = clip(factor * image + (1 - factor) * neutral), where the neutral
    image is black, the mean grey value, or the grey image; factor in [1 - x, 1 + x]."""
    x = images(200, seed=1)
    strength = 0.4
    jitter = tuple(strength if i == which else 0.0 for i in range(3))
    out = np.asarray(augment_lib.augment(keys(200), x, color_jitter=jitter))
    y = x / 255.0
    grey = (y @ GREY)[..., None]
    neutral = [np.zeros_like(y), grey.mean((1, 2, 3), keepdims=True), grey][which]
    factors = []
    for image, centre, result in zip(y, np.broadcast_to(neutral, y.shape), out, strict=True):
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
    x = np.full((300, 2, 2, 3), 100, np.uint8)
    out = augment_lib.augment(keys(300), x, color_jitter=(2.0, 0.0, 0.0))
    assert out.min() >= 0 and out.max() <= 1
    assert float(jnp.median(out)) > 100 / 255  # U[0, 3] has its median at 1.5


def test_grey_images_have_no_saturation():
    x = images(channels=1)
    out = augment_lib.augment(keys(6), x, color_jitter=(0.0, 0.0, 0.4))
    np.testing.assert_allclose(out, x / 255.0, rtol=1e-6)


def test_normalize_and_back():
    x = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = augment_lib.normalize(x, mean=mean, std=std)
    np.testing.assert_allclose(out, (x - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(augment_lib.denormalize(out, mean=mean, std=std), x, atol=1e-6)
