"""Random erasing: the rule of its boxes against a loop, its noise, and draws per example."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax.data.erasing import ATTEMPTS, boxes, erase

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def loop(rng, height, width):
    """timm's rule, drawn one image at a time: (top, left, height, width) or None."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h = round(math.sqrt(area * aspect))
        w = round(math.sqrt(area / aspect))
        if w < width and h < height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    return None


def found_boxes(inside):
    """Of masks [B,H,W], each one solid box or nothing."""
    found = []
    for mask in np.asarray(inside):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            found.append(None)
            continue
        top, left = rows[0], columns[0]
        h, w = len(rows), len(columns)
        assert mask[top : top + h, left : left + w].all() and mask.sum() == h * w
        found.append((top, left, h, w))
    return found


@pytest.mark.parametrize('size', [(32, 32), (20, 64)])
def test_boxes_have_the_distribution_of_the_loop(size):
    rng = np.random.default_rng(0)
    expected = [loop(rng, *size) for _ in range(6000)]
    found = found_boxes(boxes(keys(6000), size=size))
    for boxes_found in (expected, found):
        assert None not in boxes_found  # one of ten fits, all but surely
    expected, found = np.array(expected), np.array(found)
    shares = [b[:, 2] * b[:, 3] / math.prod(size) for b in (expected, found)]
    aspects = [b[:, 2] / b[:, 3] for b in (expected, found)]
    places = [b[:, axis] for axis in (0, 1) for b in (expected, found)]
    for mine, theirs in (shares, aspects, places[:2], places[2:]):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3
    assert shares[1].max() < 0.36 and shares[1].min() > 0.01
    assert found[:, 0].min() == 0 and found[:, 1].min() == 0
    assert (found[:, 0] + found[:, 2]).max() == size[0]


def test_the_first_that_fits_is_taken_and_places_are_alike(monkeypatch):
    """With the draws given: heights and widths of the first box that is smaller than the image."""
    from mim_jax.data import erasing

    draws = {
        'erase area': np.array([[0.33, 0.33, 0.2] + [0.02] * 7, [0.33] * 10]),
        'erase aspect': np.log([[3.3, 0.3, 1.0] + [1.0] * 7, [3.3] * 10]),
        'erase place0': np.array([0.999, 0.5]),
        'erase place1': np.array([0.0, 0.5]),
    }

    def given(keys, name, count=None, bounds=None):
        return jnp.asarray(draws[name], jnp.float32)

    monkeypatch.setattr(erasing, '_uniform', given)
    # 12 x 12: 0.33 of it at 3.3 is 12.5 high, at 0.3 12.6 wide; 0.2 at 1 is 5.4 a side.
    found = found_boxes(boxes(keys(2), size=(12, 12)))
    assert found == [(12 - 5, 0, 5, 5), None] and ATTEMPTS == 10


def test_a_quarter_is_erased_by_normal_noise_of_the_normalised_image():
    images = jax.random.uniform(jax.random.key(3), (2000, 16, 12, 3))
    out = np.asarray(erase(keys(2000), images, probability=0.25, mean=MEAN, std=STD))
    changed = (out != np.asarray(images)).any((1, 2, 3))
    assert stats.binomtest(int(changed.sum()), 2000, 0.25).pvalue > 1e-4
    inside = np.asarray(boxes(keys(2000), size=(16, 12))) & changed[:, None, None]
    np.testing.assert_array_equal(out[~inside], np.asarray(images)[~inside])
    noise = (out[inside] - np.array(MEAN)) / np.array(STD)
    assert noise.shape[0] > 5000
    for channel in range(3):
        assert stats.kstest(noise[:, channel], stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.03  # each channel its own
    np.testing.assert_array_equal(
        erase(keys(4), images[:4], probability=0.0, mean=MEAN, std=STD), images[:4]
    )


def test_draws_are_the_examples_own():
    images = jnp.zeros((8, 10, 10, 3))
    erased = jax.jit(lambda k, x: erase(k, x, probability=1.0, mean=MEAN, std=STD))
    whole = erased(keys(8), images)
    np.testing.assert_allclose(erased(keys(8)[1::2], images[1::2]), whole[1::2], atol=1e-6)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    spread = erased(*jax.device_put((keys(8), images), place))
    np.testing.assert_allclose(spread, whole, atol=1e-6)
