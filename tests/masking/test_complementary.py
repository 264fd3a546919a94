"""Two rounds that show different patches and ask for the same."""

import jax
import numpy as np
import pytest

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.masking import ComplementaryMasking, mask_without

KEYS = keys.per_example(jax.random.key(0), 200)


@pytest.mark.parametrize(
    'grid, shares, counts',
    [((14, 14), (0.45, 0.25, 0.2), (88, 49, 39)), ((2, 5), (0.4, 0.3, 0.3), (4, 3, 3))],
)
def test_rounds_show_different_patches_and_ask_for_the_same(grid, shares, counts):
    masking = ComplementaryMasking(*shares)
    assert masking.counts(grid) == counts
    (first, asked), (second, again) = (
        [np.asarray(places) for places in one] for one in masking.rounds(KEYS, grid=grid)
    )
    np.testing.assert_array_equal(asked, again)
    total = grid[0] * grid[1]
    assert [x.shape[1] for x in (first, second, asked)] == list(counts)
    for row in np.concatenate([first, second, asked], axis=1):
        assert len(set(row)) == sum(counts) and min(row) >= 0 and max(row) < total
    # Every place is as likely as any other.
    for places, count in zip((first, second, asked), counts, strict=True):
        seen = ~np.asarray(mask_without(places, num_patches=total))
        assert (seen.sum(axis=1) == count).all()
        share = count / total
        assert (np.abs(seen.mean(axis=0) - share) < 4.5 * np.sqrt(share * (1 - share) / 200)).all()


def test_more_than_there_is_or_nothing_is_refused():
    for shares in ((0.7, 0.3, 0.2), (0.45, 0.25, 0.01)):
        with pytest.raises(UserError, match='different ones and at least one of each'):
            ComplementaryMasking(*shares).counts((4, 4))
