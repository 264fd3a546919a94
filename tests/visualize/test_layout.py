"""Sheets: where panels, words and samples of colour lie."""

import numpy as np
import pytest

from mim_jax.visualize import layout


def make_images(count=2, *, height=8, width=12, seed=0):
    return np.random.default_rng(seed).random((count, height, width, 3), np.float32)


def ink(part):
    """Rows and columns of a part of a sheet that are not white."""
    dark = (part < 250).any(axis=-1)
    return np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))


def test_one_row_per_image_under_titles():
    small = make_images(3, height=32, width=48)
    sheet = layout.sheet([small, small * 0], titles=['input', 'nothing'])
    assert sheet.dtype == np.uint8 and sheet.shape[-1] == 3
    height, width = 32 * 7, 48 * 7  # enlarged by 224 / 32
    gap = width // 40
    assert sheet.shape[1] == 2 * (width + gap) + gap
    header = sheet.shape[0] - 3 * (height + gap)
    assert 15 < header < 60
    for half in (sheet[:header, : width + gap], sheet[:header, width + gap :]):
        assert half.min() < 100 and half.max() == 255  # dark letters on white
    for row in range(3):
        top = header + row * (height + gap)
        panel = sheet[top : top + height, gap : gap + width]
        expected = np.round(small[row] * 255).repeat(7, axis=0).repeat(7, axis=1)
        np.testing.assert_array_equal(panel, expected)
        assert not sheet[top : top + height, 2 * gap + width : -gap].any()


@pytest.mark.parametrize('count, rows', [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_many_columns_make_several_rows_that_fit_a_page(count, rows):
    """Every row has the titles of its own columns; in all there is every panel once."""
    size = 16 * 14
    levels = np.linspace(0.1, 0.9, count)
    columns = [np.full((2, 16, 16, 3), level) for level in levels]
    sheet = layout.sheet(columns, titles=[f'panel {i}' for i in range(count)])
    assert sheet.shape[1] <= layout.FULL_WIDTH
    gap, per_row = 5, -(-count // rows)
    titles = 2 * rows if rows > 1 else 1
    title = layout.sheet(columns[:1], titles=['panel']).shape[0] - 2 * (size + gap)
    assert sheet.shape == (titles * title + 2 * rows * (size + gap), per_row * 229 + 5, 3)
    top = 0
    for image in range(2):
        for start in range(0, count, per_row):
            if image == 0 or rows > 1:
                assert len(ink(sheet[top : top + title])[0])
                top += title
            for place in range(start, min(start + per_row, count)):
                left = gap + (place - start) * (size + gap)
                panel = sheet[top : top + size, left : left + size]
                assert (panel == round(levels[place] * 255)).all()
            top += size + gap


def test_long_titles_are_broken_inside_their_column():
    panel = np.ones((1, 16, 16, 3))
    title = '98 of 196 groups left after seven merging steps'
    sheet = layout.sheet([panel, panel], titles=[title, title])
    rows, columns = ink(sheet)
    assert rows[-1] - rows[0] > layout.TITLE * 2  # two lines or more
    middle = sheet.shape[1] // 2
    assert columns[0] > 3 and columns[-1] < sheet.shape[1] - 3
    assert not {middle - 2, middle - 1, middle, middle + 1} & set(columns)


def test_the_heading_stands_above_and_the_legend_below():
    panel = np.ones((1, 16, 16, 3))
    plain = layout.sheet([panel] * 2, titles=['a', 'b'])
    keys = [
        layout.Key('hidden', np.full((1, 1, 3), 0.5)),
        layout.Key('from least to most', np.linspace(0, 1, 66).reshape(1, 22, 3)),
        layout.Key('words of such a length that a line of this narrow sheet is too short for them'),
    ]
    sheet = layout.sheet([panel] * 2, titles=['a', 'b'], heading='run, step 7', legend=keys)
    assert sheet.shape[1] == plain.shape[1]
    heading = next(h for h in range(len(sheet)) if (sheet[h : h + len(plain)] == plain).all())
    rows, columns = ink(sheet[:heading])
    assert rows[-1] - rows[0] >= 12 and columns[-1] < len(sheet[0]) // 2
    legend = sheet[heading + len(plain) :]
    assert legend.shape[0] > 3 * layout.LEGEND  # a line for two, two lines for the third
    grey = (legend == 128).all(axis=-1)
    assert grey.sum() >= layout.SAMPLE**2 and grey[:, : layout.SAMPLE + 5].sum() > 400
    assert ink(legend)[1][-1] < legend.shape[1] - 2
