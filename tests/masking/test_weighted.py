import jax
import numpy as np

from mim_jax.masking import WeightedMasking


def test_the_visible_patches_are_those_of_successive_draws_by_weight():
    """How often each is kept, against draws one after the other in NumPy; 20,000 images each."""
    weights, draws = np.array([8.0, 4.0, 2.0, 1.0, 1.0, 0.5]), 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    masking = WeightedMasking(ratio=0.5)
    mask = np.asarray(masking(keys, grid=(2, 3), weights=np.tile(weights, (draws, 1))))
    assert (mask.sum(axis=1) == 3).all()
    rng = np.random.default_rng(0)
    kept = np.zeros(6)
    for _ in range(draws):
        left = weights.copy()
        for _ in range(3):
            patch = rng.choice(6, p=left / left.sum())
            kept[patch] += 1
            left[patch] = 0
    found, expected = (~mask).mean(axis=0), kept / draws
    sigma = np.sqrt(2 * expected * (1 - expected) / draws)
    assert (np.abs(found - expected) < 5 * sigma).all()
    assert found[0] > 0.9 > 0.3 > found[5]


def test_as_many_stay_visible_as_maskaligns_code_keeps():
    keys, weights = jax.random.split(jax.random.key(1), 4), np.ones((4, 196))
    mask = WeightedMasking()(keys, grid=(14, 14), weights=weights)
    assert mask.dtype == bool and (~mask).sum(axis=1).tolist() == [58] * 4


def test_without_differences_of_weight_it_is_uniform():
    keys = jax.random.split(jax.random.key(2), 20_000)
    mask = np.asarray(WeightedMasking(0.75)(keys, grid=(2, 4), weights=np.ones((20_000, 8))))
    assert (np.abs(mask.mean(axis=0) - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 20_000)).all()
