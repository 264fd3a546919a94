"""Resizing against Pillow, the definition of the antialiased bicubic of the published recipes."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from mim_jax.data import resample

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


@pytest.fixture(scope='module', params=['vectors', 'matrices'], autouse=True)
def way(request):
    """With the package that has vector instructions, and as where there is none."""
    if request.param == 'vectors' and resample.vectorized is None:
        pytest.skip('cykooz-resizer is not installed')
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'matrices':
            patch.setattr(resample, 'vectorized', None)
        yield request.param


def pillow(image, size, name, box=None):
    image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if box:
        image = image.crop((box[1], box[0], box[1] + box[3], box[0] + box[2]))
    out = np.asarray(image.resize(size[::-1], FILTERS[name]))
    return out.reshape(*size, -1)


def photo(name='china.jpg'):
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)  # 427 x 640


@pytest.mark.parametrize('name', FILTERS)
@pytest.mark.parametrize('size', [(224, 224), (96, 160), (500, 700), (32, 32), (427, 300)])
def test_photo_differs_from_pillow_by_rounding_only(name, size, way):
    image = photo()
    difference = np.abs(resample.resize(image, size, interpolation=name).astype(int)
                        - pillow(image, size, name))  # fmt: skip
    # Pillow's weights are fixed-point numbers of 22 bits: halves may round apart in either pass.
    # Those of the vectors have 16, so that now and then both do.
    assert difference.max() <= (2 if way == 'vectors' else 1)
    assert np.mean(difference > 1) < 1e-5
    assert difference.mean() < 0.01


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data())
def test_any_shape_and_box_of_noise(data):
    side = st.integers(1, 40)
    height, width = data.draw(side), data.draw(side)
    size = data.draw(side), data.draw(side)
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    channels = data.draw(st.sampled_from([1, 3]))
    seed = data.draw(st.integers(0, 1000))
    # Without values near the ends: a clipped overshoot would depend on which pass comes first.
    image = np.random.default_rng(seed).integers(40, 216, (height, width, channels), np.uint8)
    name = data.draw(st.sampled_from(list(FILTERS)))
    out = resample.resize(image, size, box=(top, left, h, w), interpolation=name)
    assert out.dtype == np.uint8 and out.shape == (*size, channels)
    expected = pillow(image, size, name, (top, left, h, w))
    # Each side rounds twice, and the second pass weighs the first one's rounding by up to 1.25.
    difference = np.abs(out.astype(int) - expected)
    assert difference.max() <= 2


def test_fractional_box_is_pillows_resize_box():
    """Pillow's own `box` sees pixels outside; with a box of the whole image's width the only
    difference is at its edges, so the inside is compared."""
    image = photo()[:200, :300]
    box = (10.5, 20.25, 150.0, 240.5)
    ours = resample.resize(image, (100, 120), box=box)
    theirs = Image.fromarray(image).resize(
        (120, 100), FILTERS['bicubic'], box=(20.25, 10.5, 260.75, 160.5)
    )
    inside = np.s_[3:-3, 3:-3]
    assert np.abs(ours.astype(int) - np.asarray(theirs))[inside].max() <= 1


def test_same_size_is_a_copy():
    image = photo()[:32, :48]
    np.testing.assert_array_equal(resample.resize(image, (32, 48)), image)
