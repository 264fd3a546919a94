import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.masking import RandomMasking


@pytest.mark.parametrize(
    'ratio, grid, hidden', [(0.75, (14, 14), 147), (0.75, (8, 8), 48), (0.6, (10, 18), 108)]
)
def test_the_count_is_exact_in_every_image(ratio, grid, hidden):
    masking = RandomMasking(ratio=ratio)
    mask = np.asarray(masking(jax.random.split(jax.random.key(0), 50), grid=grid))
    assert mask.dtype == bool and mask.shape == (50, grid[0] * grid[1])
    assert masking.count(grid) == hidden and (mask.sum(axis=1) == hidden).all()


def test_every_pair_of_patches_is_hidden_equally_often():
    """Without replacement: P(i) = 9/12, P(i and j) = 9/12 * 8/11; 20,000 images, 5 sigma."""
    keys = jax.random.split(jax.random.key(1), 20_000)
    mask = np.asarray(RandomMasking(ratio=0.75)(keys, grid=(3, 4)), np.float64)
    together = mask.T @ mask / len(mask)
    expected = np.where(np.eye(12, dtype=bool), 9 / 12, 9 / 12 * 8 / 11)
    sigma = np.sqrt(expected * (1 - expected) / len(mask))
    assert (np.abs(together - expected) < 5 * sigma).all()


def test_an_image_is_masked_by_its_own_key():
    keys = jax.random.split(jax.random.key(2), 8)
    whole = RandomMasking()(keys, grid=(7, 7))
    np.testing.assert_array_equal(RandomMasking()(keys[5:], grid=(7, 7)), whole[5:])
    assert len(np.unique(whole, axis=0)) == 8


@pytest.mark.parametrize('floor, visible', [('visible', 19), ('hidden', 20)])
def test_either_number_may_be_the_one_rounded_down(floor, visible):
    """Of 196 patches at 0.9: MAE's rule keeps int(19.6), CroCo's hides int(176.4)."""
    masking = RandomMasking(ratio=0.9, floor=floor)
    mask = masking(jax.random.split(jax.random.key(0), 3), grid=(14, 14))
    assert (~mask).sum(axis=1).tolist() == [visible] * 3


def test_a_ratio_that_hides_everything_is_the_users_mistake():
    with pytest.raises(UserError, match='masking.ratio'):
        RandomMasking(ratio=0.95).count((3, 3))
