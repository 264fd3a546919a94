import numpy as np
import pytest

from mim_jax import panels
from mim_jax.visualize import pictures

GRID = (2, 3)  # not square, so that a swap of rows and columns shows


def make_images(count=2, *, height=8, width=12, channels=3, seed=0):
    return np.random.default_rng(seed).random((count, height, width, channels), np.float32)


def grey(image):
    return (image @ np.float32((0.299, 0.587, 0.114)))[..., None]


def patch(image, index, *, grid=GRID):
    """The pixels of one patch, cut out by hand."""
    height, width = image.shape[0] // grid[0], image.shape[1] // grid[1]
    row, column = divmod(index, grid[1])
    return image[row * height : (row + 1) * height, column * width : (column + 1) * width]


@pytest.mark.parametrize('channels', [1, 3])
def test_hidden_patches_have_the_grey_and_others_the_photo(channels):
    images = make_images(channels=channels)
    mask = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0]], bool)
    shown = pictures.hide(images, mask, grid=GRID)
    assert shown.shape == (2, 8, 12, 3)
    for b in range(2):
        for n in range(6):
            expected = pictures.HIDDEN if mask[b, n] else patch(images[b], n)
            np.testing.assert_allclose(
                patch(shown[b], n), np.broadcast_to(expected, (4, 4, 3)), atol=1e-6
            )


def test_composite_takes_hidden_patches_from_the_reconstruction():
    images, reconstruction = make_images(seed=0), make_images(seed=1)
    mask = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0]], bool)
    shown = pictures.composite(images, reconstruction, mask, grid=GRID)
    for b in range(2):
        for n in range(6):
            source = reconstruction if mask[b, n] else images
            np.testing.assert_array_equal(patch(shown[b], n), patch(source[b], n))


def test_uint8_and_float_images_look_the_same():
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_allclose(pictures.to_rgb(images), images / 255, atol=1e-6)
    np.testing.assert_allclose(pictures.to_rgb(images / 255), images / 255, atol=1e-6)


def test_a_grid_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match='do not fit'):
        pictures.hide(make_images(), np.zeros((2, 6), bool), grid=(3, 3))
    with pytest.raises(ValueError, match='do not fit'):
        pictures.hide(make_images(), np.zeros((2, 15), bool), grid=(3, 5))


def test_single_patches_stay_the_plain_photo():
    images = make_images()
    alone = np.tile(np.arange(6), (2, 1))
    shown = pictures.paint_groups(images, alone, grid=GRID, scale=3)
    np.testing.assert_array_equal(shown, images.repeat(3, axis=1).repeat(3, axis=2))


def test_every_merged_group_has_one_colour_of_its_own():
    scale, opacity = 10, pictures.OPACITY
    images = make_images(1)
    groups = np.array([[0, 0, 1, 2, 1, 3]])  # two pairs, one of them not contiguous; two singles
    shown = pictures.paint_groups(images, groups, grid=GRID, scale=scale)[0]
    photo = images[0].repeat(scale, axis=0).repeat(scale, axis=1)
    tint = (shown - (1 - opacity) * grey(photo)) / opacity
    inner = (slice(5, -5), slice(5, -5))  # away from the borders
    colors = []
    for group in (0, 1):
        members = [patch(tint, n)[inner].reshape(-1, 3) for n in np.flatnonzero(groups == group)]
        assert np.ptp(np.concatenate(members), axis=0).max() < 1e-4
        colors.append(members[0][0])
    assert np.abs(colors[0] - colors[1]).max() > 0.1
    for single in (3, 5):
        np.testing.assert_array_equal(patch(shown, single)[inner], patch(photo, single)[inner])


def test_borders_run_between_groups_and_not_inside_them():
    images = np.full((1, 8, 12, 3), 0.2, np.float32)
    groups = np.array([[0, 0, 1, 0, 0, 2]])  # a 2x2 group beside two single patches
    shown = pictures.paint_groups(images, groups, grid=GRID, scale=10)[0]
    white = (shown == 1).all(axis=-1)
    rows, columns = np.nonzero(white)
    assert set(columns) <= {79, 80} and len(set(columns)) >= 1  # 2 patches of 4 pixels times 10
    assert set(rows) == set(range(80))  # from top to bottom; none between the single patches


def test_a_group_keeps_its_colour_while_others_merge():
    images = make_images(1)
    few = pictures.paint_groups(images, np.array([[0, 0, 1, 2, 3, 4]]), grid=GRID, scale=10)[0]
    more = pictures.paint_groups(images, np.array([[2, 2, 0, 1, 1, 0]]), grid=GRID, scale=10)[0]
    inner = (slice(5, -5), slice(5, -5))
    np.testing.assert_array_equal(patch(few, 0)[inner], patch(more, 0)[inner])


def test_many_groups_of_an_image_have_colours_of_their_own():
    """The most that there can be with one pair in each, in any order of numbers."""
    grid = (12, 12)
    numbers = np.random.default_rng(0).permutation(72).repeat(2)[None]
    shown = pictures.paint_groups(np.zeros((1, 48, 48, 3)), numbers, grid=grid, scale=4)[0]
    centres = shown[8::16, 8::16].reshape(-1, 3)
    assert len(np.unique(centres.round(5), axis=0)) == 72


def test_principal_components_tell_clusters_apart():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 16)) * 5
    assigned = generator.integers(3, size=(4, 10))
    tokens = centres[assigned] + 0.01 * generator.normal(size=(4, 10, 16))
    found = pictures.principal_components(tokens.astype(np.float32))
    assert found.shape == (4, 10, 3) and found.min() >= 0 and found.max() <= 1
    means = [found[assigned == c][:, :2].mean(axis=0) for c in range(3)]
    for c in range(3):
        spread = np.abs(found[assigned == c][:, :2] - means[c]).max()
        others = min(np.abs(means[c] - means[d]).max() for d in range(3) if d != c)
        assert spread < 0.1 * others
    colors = pictures.pca_colors(tokens)
    assert colors.dtype == np.float32 and colors.min() >= 0 and colors.max() <= 1
    np.testing.assert_array_equal(colors, pictures.pca_colors(tokens))


def test_pca_colors_of_few_components_and_of_equal_tokens():
    assert pictures.pca_colors(np.random.default_rng(0).normal(size=(2, 4, 2))).shape == (2, 4, 3)
    assert np.isfinite(pictures.pca_colors(np.ones((2, 4, 8)))).all()


def test_a_sheet_has_the_input_and_a_column_for_every_panel(unlaid):
    images, other = make_images(1), make_images(1, seed=1)
    mask = np.array([[1, 0, 0, 0, 1, 1]], bool)
    shown = [
        panels.Mask(mask),
        panels.Mask(mask, other),
        panels.Image(other),
        panels.Image(other, mask, title='composite'),
        panels.HeatMap(np.arange(6.0)[None]),
        panels.Groups(np.arange(6)[None]),
        panels.Tokens(np.eye(6)[None]),
        panels.Classes(np.full((1, 8, 12), 255)),
    ]
    sheets = pictures.render({'all': shown, 'none': []}, images, grid=GRID, heading='run, step 7')
    assert sheets['all'].heading == 'run, step 7: all' and sheets['none'].heading.endswith('none')
    found = sheets['all'].columns
    expected = [
        images,
        pictures.hide(images, mask, grid=GRID),
        pictures.hide(other, mask, grid=GRID),
        other,
        pictures.composite(images, other, mask, grid=GRID),
        pictures.to_pixels(pictures.heat_colors(np.arange(6.0)[None]), grid=GRID, size=(8, 12)),
        images.repeat(28, axis=1).repeat(28, axis=2),  # a patch alone is the plain photo
        pictures.to_pixels(pictures.pca_colors(np.eye(6)[None]), grid=GRID, size=(8, 12)),
        pictures.OPACITY * np.float32(pictures.HIDDEN) + (1 - pictures.OPACITY) * grey(images),
    ]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert len(sheets['none'].columns) == 1 and not sheets['none'].legend
    texts = [key.text for key in sheets['all'].legend]
    # Two masks, but one line about what is hidden.
    assert texts[0] == 'hidden' and len(set(texts)) == len(texts) == 6
    assert [t for t in texts if 'class' in t] == ['no class']


def test_the_legend_shows_the_colours_that_are_drawn(unlaid):
    """Of masks, heat maps and classes: every colour of the panel is one of its samples."""
    images = make_images(1) * 0
    classes = np.arange(96).reshape(1, 8, 12) % 3
    shown = {
        'mask': [panels.Mask(np.ones((1, 6), bool))],
        'heat': [panels.HeatMap(np.arange(6.0)[None])],
        'classes': [panels.Classes(classes)],
    }
    sheets = pictures.render(shown, images, grid=GRID)
    assert sheets['mask'].heading is None
    for name, opacity in (('mask', 1), ('heat', 1), ('classes', pictures.OPACITY)):
        drawn = sheets[name].columns[1].reshape(-1, 3)
        samples = np.concatenate([k.sample.reshape(-1, 3) for k in sheets[name].legend])
        apart = np.linalg.norm(drawn[:, None] - opacity * samples[None], axis=-1).min(axis=1)
        assert apart.max() < 0.05, name
    assert [key.text for key in sheets['classes'].legend] == ['class 0', 'class 1', 'class 2']


def test_the_protected_patch_is_framed_and_explained(unlaid):
    images = make_images(2)
    groups = np.array([[0, 1, 1, 2, 1, 3]] * 2)
    free = panels.Groups(groups)
    bound = panels.Groups(groups, protected=np.array([0, 4]))
    sheets = pictures.render({'free': [free], 'bound': [bound]}, images, grid=GRID)
    changed = (sheets['free'].columns[1] != sheets['bound'].columns[1]).any(axis=-1)
    for b, place in enumerate((0, 4)):
        own = patch(changed[b], place)
        assert own.any() and own.sum() == changed[b].sum()  # nothing outside of it
        inner = patch(sheets['bound'].columns[1][b], place)
        assert (inner[0] == pictures.BORDER).all() and not own[20:-20, 20:-20].any()
        assert (inner[:, :9] == pictures.PROTECTED).all(axis=-1).any()
    explained = [key.text for key in sheets['bound'].legend if 'never joins' in key.text]
    assert len(explained) == 1 and 'protect_first' in explained[0]
    assert not [key for key in sheets['free'].legend if 'never joins' in key.text]


def test_an_image_of_another_size_fills_its_column(unlaid):
    small = np.full((1, 4, 6, 3), 0.5, np.float32)
    hidden = panels.Mask(np.zeros((1, 6), bool), small)
    sheet = pictures.render({'x': [panels.Image(small), hidden]}, make_images(1), grid=GRID)['x']
    _, *shown = sheet.columns
    assert [column.shape for column in shown] == [(1, 8, 12, 3)] * 2
    assert all((column == 0.5).all() for column in shown)


def test_what_is_no_panel_is_an_error():
    with pytest.raises(ValueError, match="gives ndarray in the sheet 'mask', which is none of"):
        pictures.render({'mask': [np.zeros((2, 6), bool)]}, make_images(2), grid=GRID)


def test_heat_maps_rise_from_dark_to_light():
    colors = pictures.heat_colors(np.array([[3.0, 1, 2], [5, 5, 5]]))
    grey = colors.sum(axis=-1)
    assert grey[0, 1] < grey[0, 2] < grey[0, 0] and colors[0, 1].max() < 0.02
    assert np.ptp(grey[1]) == 0


def test_components_like_those_of_other_tokens():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    every, tokens = rng.normal(size=(40, 5)), rng.normal(size=(2, 6, 5))
    model = PCA(3).fit(every)
    components = model.transform(tokens.reshape(-1, 5))
    low, high = np.percentile(model.transform(every), (1, 99), axis=0)
    colors = pictures.principal_components(tokens, like=every).reshape(-1, 3)
    for i in range(3):
        up = np.clip((components[:, i] - low[i]) / (high[i] - low[i]), 0, 1)
        best = min(np.abs(colors[:, i] - x).max() for x in (up, 1 - up))  # an axis has no sign
        assert best < 1e-5


def test_on_canvas():
    images = make_images(height=4, width=3)
    shown = pictures.on_canvas(images, (7, 3))
    np.testing.assert_array_equal(shown[:, 1:5], images)
    assert shown.shape == (2, 7, 3, 3) and (shown[:, [0, 5, 6]] == 1).all()


def test_classes_have_colours_of_their_own_over_the_photo():
    photo = np.stack([np.zeros((2, 128, 3)), np.ones((2, 128, 3))])
    classes = np.stack([np.arange(256).reshape(2, 128)] * 2)
    dark, light = pictures.paint_classes(photo, classes)
    np.testing.assert_allclose(light - dark, 1 - pictures.OPACITY, atol=1e-6)
    assert len(np.unique(dark.reshape(-1, 3).round(4), axis=0)) == 256
    np.testing.assert_allclose(dark[1, -1], pictures.OPACITY * np.array(pictures.HIDDEN), atol=1e-6)
    # Neighbours in number are far apart in colour, the first ones most of all.
    first = dark.reshape(-1, 3)[:8]
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1) + np.eye(8)
    assert apart.min() > 0.12
