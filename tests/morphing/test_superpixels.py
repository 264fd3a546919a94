import jax
import numpy as np
import pytest
from skimage.color import rgb2lab
from skimage.segmentation import slic

from mim_jax.errors import UserError
from mim_jax.morphing.superpixels import cielab, seeds, superpixel_groups


def photo(seed, grid):
    """Patch colours of a few coloured regions with noise; they span 0 to 1 as slic rescales to."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: grid[0], : grid[1]]
    region = (y + rng.integers(-3, 4) > x).astype(int) + 2 * (x > grid[1] * rng.uniform(0.3, 0.7))
    image = rng.uniform(0.1, 0.9, (4, 3))[region] + rng.normal(0, 0.05, (*grid, 3))
    image -= image.min()
    return (image / image.max()).astype(np.float32)


def test_cielab_is_that_of_scikit_image():
    colours = np.random.default_rng(0).uniform(0, 1, (5, 50, 3)).astype(np.float32)
    colours[0] *= 0.03  # the linear part near black
    np.testing.assert_allclose(cielab(colours), rgb2lab(colours), atol=2e-3)
    grey = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    np.testing.assert_allclose(cielab(grey), rgb2lab(np.repeat(grey, 3, axis=1)), atol=2e-3)


def images_of(colours, rng):
    """Images [B, 2h, 3w, C] whose patches of 2 x 3 pixels have the mean colours [B, h, w, C]."""
    batch, h, w, channels = colours.shape
    noise = rng.uniform(-0.1, 0.1, (batch, h, 2, w, 3, channels))
    noise -= noise.mean(axis=(2, 4), keepdims=True)
    pixels = colours[:, :, None, :, None, :] + noise
    return pixels.reshape(batch, 2 * h, 3 * w, channels).astype(np.float32)


@pytest.mark.parametrize('case', [((12, 12), 16), ((12, 12), 36), ((8, 16), 8), ((16, 8), 32)])
@pytest.mark.parametrize('compactness', [30.0, 60.0])
@pytest.mark.parametrize('iterations', [1, 9])
def test_segments_are_those_of_scikit_image(case, compactness, iterations):
    """Where its seeds are ours, and where a patch is never nearest to a segment so far away that
    scikit-image does not look at it.
    """
    grid, num_groups = case
    colours = np.stack([photo(seed, grid) for seed in range(3)])
    found = superpixel_groups(
        images_of(colours, np.random.default_rng(0)),
        num_groups,
        grid=grid,
        compactness=compactness,
        iterations=iterations,
    )
    for image in range(3):
        expected = slic(
            colours[image],
            num_groups,
            compactness=compactness,
            max_num_iter=iterations + 1,  # its last assignment is not followed by an update
            enforce_connectivity=False,
            start_label=0,
        )
        np.testing.assert_array_equal(found[image].reshape(grid), expected)


def slic_by_hand(colours, rows, columns, compactness, iterations):
    """One image, NumPy float64, patch by patch: seeds in the middle of rows x columns cells."""
    h, w = colours.shape[:2]
    lab = rgb2lab(colours.astype(np.float64))
    seeds = [
        (int((i + 0.5) * h / rows), int((j + 0.5) * w / columns))
        for i in range(rows)
        for j in range(columns)
    ]
    patches = [(y, x) for y in range(h) for x in range(w)]
    groups = [int(np.argmin([(y - v) ** 2 + (x - u) ** 2 for v, u in seeds])) for y, x in patches]
    step = np.sqrt(h * w / len(seeds))
    points = np.array([[*lab[y, x] / compactness, y / step, x / step] for y, x in patches])
    centres = np.zeros((len(seeds), 5))
    for _ in range(iterations):
        for number in range(len(seeds)):
            members = [i for i in range(h * w) if groups[i] == number]
            if members:
                centres[number] = points[members].mean(axis=0)
        groups = [int(np.argmin(((centres - point) ** 2).sum(axis=1))) for point in points]
    return groups


@pytest.mark.parametrize(
    'grid, num_groups, rows, columns',
    [((7, 7), 9, 3, 3), ((6, 10), 13, 3, 4), ((9, 5), 1, 1, 1), ((5, 9), 40, 5, 8)],
)
@pytest.mark.parametrize('compactness', [2.0, 15.0])
def test_segments_are_those_of_the_loop_over_patches(grid, num_groups, rows, columns, compactness):
    colours = np.stack([photo(10 + seed, grid) for seed in range(2)])
    images = images_of(colours, np.random.default_rng(1))
    found = superpixel_groups(images, num_groups, grid=grid, compactness=compactness, iterations=4)
    for image in range(2):
        expected = slic_by_hand(colours[image], rows, columns, compactness, 4)
        np.testing.assert_array_equal(found[image], expected)


@pytest.mark.parametrize('grid', [(14, 14), (7, 20), (1, 9)])
def test_seeds_are_about_as_many_as_groups_and_all_different(grid):
    numbers = np.arange(1, grid[0] * grid[1] + 1)
    found, counts = jax.jit(jax.vmap(lambda number: seeds(number, grid)))(numbers)
    assert counts[-1] == numbers[-1]
    for number, count, places in zip(numbers, counts, np.asarray(found), strict=True):
        assert abs(int(count) - number) <= np.sqrt(number * grid[0] / grid[1]) / 2 + 1
        assert len(np.unique(places[:count], axis=0)) == count
        assert (places[:count] >= 0).all() and (places[:count] < grid).all()


def test_grey_images_are_grouped_as_their_colour_copies():
    grey = photo(3, (8, 8))[None, :, :, :1]
    options = dict(grid=(8, 8), compactness=10.0, iterations=3)
    found = superpixel_groups(grey, 9, **options)
    np.testing.assert_array_equal(found, superpixel_groups(grey.repeat(3, axis=3), 9, **options))


def test_images_of_other_channels_are_the_users_mistake():
    with pytest.raises(UserError, match='1 or 3 channels, these have 4'):
        superpixel_groups(np.ones((1, 8, 8, 4)), 4, grid=(4, 4), compactness=1.0, iterations=1)
