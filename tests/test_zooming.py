"""Zooms against NumPy loops: what is seen of a scene, and where a picture of it lies in that."""

import jax
import numpy as np
import pytest

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.zooming import ZoomIn, ZoomOut

SIZE = (21, 14)
KEYS = keys.per_example(jax.random.key(0), 6)


def pictures(*size):
    return np.random.default_rng(0).random((6, *size, 3)).astype(np.float32)


def areas_by_hand(images, size):
    """Means of the pixels that a new one touches, as PyTorch has them."""
    (height, width), (h, w) = images.shape[1:3], size
    out = np.zeros((len(images), h, w, 3))
    for row in range(h):
        for column in range(w):
            top, bottom = row * height // h, -(-(row + 1) * height // h)
            left, right = column * width // w, -(-(column + 1) * width // w)
            out[:, row, column] = images[:, top:bottom, left:right].mean(axis=(1, 2))
    return out


def amid_reflection(scene, corner, size):
    """One scene [h,w,3] from `corner` on, and around it what a mirror at its edge would show."""
    seen = np.zeros((*size, 3))
    for place in np.ndindex(size):
        source = []
        for at, start, count in zip(place, corner, scene.shape, strict=False):
            at -= start
            if at < 0:
                at = -1 - at
            elif at >= count:
                at = count - 1 - (at - count)
            source.append(at)
        seen[place] = scene[tuple(source)]
    return seen


def test_zoomed_in_the_middle_is_seen():
    zoom = ZoomIn()  # a seventh: 3 of 21 and 2 of 14 pixels on each side
    assert zoom.scene_size(SIZE) == (27, 18) and zoom.scene_size((224, 224)) == (288, 288)
    scene = pictures(27, 18)
    np.testing.assert_array_equal(zoom.seen(KEYS, scene, SIZE), scene[:, 3:24, 2:16])
    images = pictures(*SIZE)
    whole = areas_by_hand(images, (27, 18))
    np.testing.assert_allclose(zoom.whole(images), whole, atol=1e-6)
    np.testing.assert_allclose(zoom.framed(KEYS, images), whole[:, 3:24, 2:16], atol=1e-6)


def test_zoomed_out_a_scene_is_seen_amid_its_reflection():
    zoom = ZoomOut()
    assert zoom.scene_size(SIZE) == (15, 10) and zoom.scene_size((224, 224)) == (160, 160)
    scene, images = pictures(15, 10), pictures(*SIZE)
    seen, framed = zoom.seen(KEYS, scene, SIZE), zoom.framed(KEYS, images)
    corners = [np.asarray(jax.random.randint(key, (2,), 0, np.array([6, 4]))) for key in KEYS]
    assert len(np.unique(corners, axis=0)) > 3
    smaller = areas_by_hand(images, (15, 10))
    for image, corner in enumerate(corners):
        np.testing.assert_allclose(
            seen[image], amid_reflection(scene[image], corner, SIZE), atol=1e-6
        )
        expected = amid_reflection(smaller[image], corner, SIZE)
        np.testing.assert_allclose(framed[image], expected, atol=1e-6)


def test_all_places_occur_and_no_other():
    many = keys.per_example(jax.random.key(1), 400)
    scene = np.zeros((400, 5, 5, 1), np.float32)
    scene[:, 2, 2] = 1
    seen = np.asarray(ZoomOut().seen(many, scene, (7, 7)))[..., 0]
    # In the middle of the scene, which begins at 0 or 1; its reflection does not reach so far.
    places, counts = np.unique(np.argwhere(seen)[:, 1:], axis=0, return_counts=True)
    assert [tuple(place) for place in places] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert counts.min() > 60 and counts.sum() == 400


def test_less_than_a_pixel_is_refused():
    with pytest.raises(UserError, match=r'corruption.border = 0.01: less than a pixel .* 32x24'):
        ZoomIn(border=0.01).check((32, 24), 3)
