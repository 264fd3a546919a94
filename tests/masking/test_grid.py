import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.masking import GridMasking


@pytest.mark.parametrize(
    'ratio, cell, grid, hidden',
    # SimMIM: 30 of 49 cells of 2x2 patches are 120 of 196 patches.
    [(0.6, (2, 2), (14, 14), 120), (0.6, (2, 3), (8, 12), 60), (0.5, (1, 1), (5, 7), 18)],
)
def test_whole_cells_are_hidden_and_their_count_is_exact(ratio, cell, grid, hidden):
    masking = GridMasking(ratio=ratio, cell=cell)
    mask = np.asarray(masking(jax.random.split(jax.random.key(0), 40), grid=grid))
    assert mask.shape == (40, grid[0] * grid[1]) and mask.dtype == bool
    assert masking.count(grid) == hidden and (mask.sum(axis=1) == hidden).all()
    cells = mask.reshape(40, grid[0] // cell[0], cell[0], grid[1] // cell[1], cell[1])
    assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()


def test_every_cell_is_hidden_equally_often():
    """30 of 49 cells, 5,000 images, 4.5 sigma."""
    keys = jax.random.split(jax.random.key(1), 5_000)
    mask = np.asarray(GridMasking()(keys, grid=(14, 14)), np.float64)
    share = 30 / 49
    assert np.abs(mask.mean(axis=0) - share).max() < 4.5 * np.sqrt(share * (1 - share) / 5_000)


def test_a_cell_has_two_sides():
    with pytest.raises(ValueError, match='cell = .2,.: it must be'):
        GridMasking(cell=(2,))


def test_a_grid_that_does_not_divide_into_cells_is_the_users_mistake():
    with pytest.raises(UserError, match='masking.cell'):
        GridMasking().count((7, 7))


def test_hiding_all_cells_is_the_users_mistake():
    with pytest.raises(UserError, match='masking.ratio'):
        GridMasking(ratio=0.9).count((4, 4))
