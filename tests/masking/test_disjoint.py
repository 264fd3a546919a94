import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.masking import DisjointMasking


@pytest.mark.parametrize(
    'ratio, grid, visible', [(0.75, (14, 14), 49), (0.75, (3, 7), 5), (0.5, (4, 4), 8)]
)
def test_counts_are_exact_and_no_place_is_visible_twice(ratio, grid, visible):
    masking = DisjointMasking(ratio=ratio)
    keys = jax.random.split(jax.random.key(0), 50)
    first, second = (np.asarray(mask) for mask in masking.pair(keys, grid=grid))
    num_patches = grid[0] * grid[1]
    for mask in (first, second):
        assert mask.dtype == bool and mask.shape == (50, num_patches)
        assert ((~mask).sum(axis=1) == visible).all()
    assert (first | second).all()
    assert masking.count(grid) == num_patches - visible
    np.testing.assert_array_equal(masking(keys, grid=grid), first)


def test_one_permutation_is_cut_in_stretches():
    keys = jax.random.split(jax.random.key(1), 20)
    first, second = (
        DisjointMasking()(keys, grid=(4, 5)),
        DisjointMasking().pair(keys, grid=(4, 5))[1],
    )
    for key, one, two in zip(keys, np.asarray(first), np.asarray(second), strict=True):
        permutation = np.argsort(np.asarray(jax.random.uniform(key, (20,))))
        assert set(np.flatnonzero(~one)) == set(permutation[:5])
        assert set(np.flatnonzero(~two)) == set(permutation[5:10])


def test_all_pairs_of_places_are_equally_frequent():
    """Visible in one view and in the other, 20,000 images, 5 sigma: i and j in the same view
    3/12 * 2/11, in different views 3/12 * 3/11.
    """
    keys = jax.random.split(jax.random.key(2), 20_000)
    first, second = (~np.asarray(m) for m in DisjointMasking().pair(keys, grid=(3, 4)))
    same, apart = 3 / 12 * 2 / 11, 3 / 12 * 3 / 11
    for one, two, expected, diagonal in (
        (first, first, same, 3 / 12),
        (second, second, same, 3 / 12),
        (first, second, apart, 0.0),
    ):
        together = np.float64(one).T @ np.float64(two) / len(keys)
        expected = np.where(np.eye(12, dtype=bool), diagonal, expected)
        sigma = np.sqrt(expected * (1 - expected) / len(keys))
        assert (np.abs(together - expected) <= 5 * sigma).all()


def test_an_image_is_masked_by_its_own_key():
    keys = jax.random.split(jax.random.key(3), 8)
    whole, part = (DisjointMasking().pair(k, grid=(7, 7)) for k in (keys, keys[5:]))
    for all_rows, rows in zip(whole, part, strict=True):
        np.testing.assert_array_equal(rows, all_rows[5:])


@pytest.mark.parametrize('ratio, grid', [(0.4, (4, 4)), (0.49, (10, 10)), (0.97, (4, 4))])
def test_views_that_must_overlap_or_see_nothing_are_the_users_mistake(ratio, grid):
    with pytest.raises(UserError, match='objective.masking.ratio') as error:
        DisjointMasking(ratio=ratio).count(grid)
    assert '\n' not in str(error.value)
