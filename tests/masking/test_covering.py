"""Masks of two views that together hide an image, against the rule written as a loop."""

import jax
import numpy as np
import pytest

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.masking import CoveringMasking

COUNT = 200
KEYS = keys.per_example(jax.random.key(0), COUNT)


@pytest.mark.parametrize(
    'ratio, covered, grid, cell, hidden, both',
    [
        (0.6, 1.0, (14, 14), (2, 2), 30, 11),  # the paper's: 19 of 49 cells are visible
        (0.6, 0.8, (8, 12), (2, 3), 10, 7),  # int(0.2 * 16) = 3 of the visible ones
        (0.6, 0.6, (4, 4), (1, 1), 10, 10),
        (0.25, 1.0, (4, 4), (1, 1), 4, 0),  # two masks cannot hide more than a half
    ],
)
def test_the_second_mask_hides_what_the_first_leaves_visible(
    ratio, covered, grid, cell, hidden, both
):
    masking = CoveringMasking(ratio=ratio, covered=covered, cell=cell)
    first, second = (np.asarray(mask) for mask in masking.pair(KEYS, grid=grid))
    np.testing.assert_array_equal(masking(KEYS, grid=grid), first)
    size = cell[0] * cell[1]
    assert masking.count(grid) == hidden * size
    for mask in (first, second):
        assert (mask.sum(axis=1) == hidden * size).all()
        cells = mask.reshape(COUNT, grid[0] // cell[0], cell[0], grid[1] // cell[1], cell[1])
        assert (cells == cells[:, :, :1, :, :1]).all()
    assert ((first & second).sum(axis=1) == both * size).all()
    # Every place is hidden equally often, in either view and in both.
    for mask, share in ((first, hidden), (second, hidden), (first & second, both)):
        share *= size / (grid[0] * grid[1])
        error = np.sqrt(share * (1 - share) / COUNT)
        assert (np.abs(mask.mean(axis=0) - share) <= 4.5 * error + 1e-9).all()


def test_less_than_the_first_mask_hides_is_refused():
    with pytest.raises(ValueError, match=r'covered = 0.5 is below ratio = 0.6'):
        CoveringMasking(ratio=0.6, covered=0.5)
    with pytest.raises(UserError, match='does not divide into such cells'):
        CoveringMasking(cell=(3, 2)).pair(KEYS, grid=(4, 4))
