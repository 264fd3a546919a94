"""HOG against a pixel-by-pixel loop."""

import math

import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.targets import HOG


def loop(images, patch, cells, bins, normalize):
    batch, height, width, channels = images.shape
    (p, q), (rows, columns) = patch, cells
    out = np.zeros((batch, height // p, width // q, rows, columns, channels, bins))
    ch, cw = p // rows, q // columns
    for b, y, x, c in np.ndindex(batch, height, width, channels):
        dy = images[b, y + 1, x, c] - images[b, y - 1, x, c] if 0 < y < height - 1 else 0.0
        dx = images[b, y, x + 1, c] - images[b, y, x - 1, c] if 0 < x < width - 1 else 0.0
        angle = math.degrees(math.atan2(dy, dx)) % 180
        bin_ = min(int(angle // (180 / bins)), bins - 1)
        place = (b, y // p, x // q, y % p // ch, x % q // cw, c, bin_)
        out[place] += math.hypot(dx, dy) / (ch * cw)
    if normalize:
        out -= out.mean(-1, keepdims=True)
        out /= np.sqrt(out.var(-1, keepdims=True) + 1e-5)
    return out.reshape(batch, (height // p) * (width // q), -1)


@pytest.mark.parametrize(
    ('patch', 'cells', 'bins', 'normalize'),
    [((8, 8), (2, 2), 9, True), ((8, 4), (4, 1), 6, False)],
)
def test_histograms_equal_a_loop_over_pixels(patch, cells, bins, normalize):
    images = np.random.default_rng(0).random((2, 16, 8, 3)).astype(np.float32)
    hog = HOG(bins=bins, cells=cells, normalize=normalize)
    result = hog.histograms(images, patch_size=patch)
    expected = loop(images.astype(np.float64), patch, cells, bins, normalize)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_a_horizontal_ramp_is_one_direction():
    images = np.broadcast_to(np.linspace(0, 1, 8)[None, None, :, None], (1, 8, 8, 1))
    cells = HOG(cells=(1, 1), normalize=False).histograms(images, patch_size=(8, 8))
    expected = np.zeros(9)
    expected[0] = 2 / 7 * 6 / 8  # the outermost columns have no difference
    np.testing.assert_allclose(cells[0, 0], expected, atol=1e-6)


def test_cells_must_divide_the_patch():
    with pytest.raises(UserError, match='8x8 pixels .* 3x3 cells'):
        HOG(cells=(3, 3)).histograms(np.zeros((1, 8, 8, 3)), patch_size=(8, 8))
