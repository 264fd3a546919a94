"""Block-wise masking against the definition as a plain loop with Python's own generator."""

import math
import random
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.masking import BlockMasking
from mim_jax.masking.block import _draw_block, _draw_blocks

CASES = {
    'DTM': (BlockMasking(), (14, 14)),
    'quick start': (BlockMasking(num_masked=24, min_block=4), (8, 8)),
    'wide grid': (BlockMasking(num_masked=90, min_block=6, max_block=30), (9, 20)),
}


def proposal(generator, rule, budget):
    """Height and width of one try."""
    area = generator.uniform(rule.min_block, budget)
    high = rule.max_aspect or 1 / rule.min_aspect
    aspect = math.exp(generator.uniform(math.log(rule.min_aspect), math.log(high)))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def reference(generator, rule, grid):
    """Mask, patches hidden by blocks and number of blocks of one image."""
    mask = np.zeros(grid, bool)
    blocks = 0
    while mask.sum() < rule.num_masked:
        budget = min(rule.num_masked - mask.sum(), rule.max_block or rule.num_masked)
        for _ in range(10):
            height, width = proposal(generator, rule, budget)
            if height >= grid[0] or width >= grid[1]:
                continue
            top = generator.randint(0, grid[0] - height)
            left = generator.randint(0, grid[1] - width)
            place = (slice(top, top + height), slice(left, left + width))
            new = height * width - mask[place].sum()
            if 0 < new <= budget:
                mask[place] = True
                blocks += 1
                break
        else:
            break
    by_blocks = mask.sum()
    visible = np.flatnonzero(~mask)
    mask.flat[generator.sample(list(visible), rule.num_masked - by_blocks)] = True
    return mask.reshape(-1), by_blocks, blocks


def z_scores(a, b):
    """Of the difference of means of two samples [n, ...], where either varies."""
    variance = a.var(axis=0) / len(a) + b.var(axis=0) / len(b)
    return (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(np.maximum(variance, 1e-12))


@pytest.mark.parametrize('case', CASES)
def test_statistics_agree_with_the_definition(case):
    """6,000 images here, 2,000 there, fixed seeds. Two-sample z below 4 for the number of blocks,
    the patches they hide, both spreads and how often neighbours are hidden together; for each
    position's share below 4.5, with a mean square of about 1 over all positions (0.4 to 2: they
    are correlated; other seeds gave 0.5 to 1.6).
    """
    rule, grid = CASES[case]
    keys = jax.random.split(jax.random.key(0), 6_000)
    mask = np.asarray(rule(keys, grid=grid))
    draw = jax.jit(jax.vmap(lambda key: _draw_blocks(key, rule=rule, grid=grid)[1:]))
    by_blocks, blocks = (np.asarray(x, np.float64) for x in draw(keys))

    generator = random.Random(1)
    expected = [reference(generator, rule, grid) for _ in range(2_000)]
    expected_mask, expected_by_blocks, expected_blocks = (
        np.array(x, np.float64) for x in zip(*expected, strict=True)
    )
    assert (mask.sum(axis=1) == rule.num_masked).all()
    assert (expected_mask.sum(axis=1) == rule.num_masked).all()
    for found, wanted in [(by_blocks, expected_by_blocks), (blocks, expected_blocks)]:
        assert abs(z_scores(found, wanted)) < 4
        assert abs(z_scores((found - found.mean()) ** 2, (wanted - wanted.mean()) ** 2)) < 4
    z = z_scores(mask.astype(np.float64), expected_mask)
    assert np.abs(z).max() < 4.5
    assert 0.4 < np.mean(z**2) < 2
    # Neighbours are hidden together as often: blocks, not single patches.
    for axis in (1, 2):
        together = [
            np.mean(m.reshape(-1, *grid) * np.roll(m.reshape(-1, *grid), 1, axis), axis=(1, 2))
            for m in (mask.astype(np.float64), expected_mask)
        ]
        assert abs(z_scores(*together)) < 4


@pytest.mark.parametrize('budget', [75, 16, 5])
def test_block_sizes_agree_with_the_definition(budget):
    """30,000 tries each: two-sample chi-square over all sizes seen at least 20 times in total, less
    than 4.5 standard deviations above its mean.
    """
    rule, grid = CASES['DTM']
    keys = jax.random.split(jax.random.key(budget), 30_000)
    draw = jax.jit(jax.vmap(lambda key: _draw_block(key, budget, rule=rule, grid=grid)))
    top, left, height, width = (np.asarray(x) for x in draw(keys))
    found = Counter(zip(height.tolist(), width.tolist(), strict=True))
    generator = random.Random(budget)
    expected = Counter(proposal(generator, rule, budget) for _ in range(30_000))
    sizes = [s for s in found | expected if found[s] + expected[s] >= 20]
    chi_square = sum((found[s] - expected[s]) ** 2 / (found[s] + expected[s]) for s in sizes)
    assert chi_square < len(sizes) + 4.5 * math.sqrt(2 * len(sizes))
    fits = (height < 14) & (width < 14)
    assert (top[fits] >= 0).all() and ((top + height)[fits] <= 14).all()
    assert (left[fits] >= 0).all() and ((left + width)[fits] <= 14).all()
    # Every place of one size is reached, its ends included, and equally often (6 sigma).
    size = max(found, key=found.get)
    of_size = (height == size[0]) & (width == size[1])
    for start, length in [(top, size[0]), (left, size[1])]:
        counts = np.bincount(start[of_size], minlength=15 - length)
        share = 1 / (15 - length)
        sigma = math.sqrt(of_size.sum() * share * (1 - share))
        assert len(counts) == 15 - length
        assert np.abs(counts - of_size.sum() * share).max() < 6 * sigma


@pytest.mark.parametrize(
    'rule, grid',
    [
        (BlockMasking(num_masked=15, min_block=9), (4, 4)),
        (BlockMasking(num_masked=60, min_block=1, max_block=1), (13, 6)),
    ],
    ids=str,
)
def test_the_count_is_exact_where_blocks_hardly_fit(rule, grid):
    mask = rule(jax.random.split(jax.random.key(0), 64), grid=grid)
    assert mask.shape == (64, grid[0] * grid[1]) and mask.dtype == bool
    assert (np.asarray(mask).sum(axis=1) == rule.count(grid)).all()


def test_an_image_is_masked_by_its_own_key():
    keys = jax.random.split(jax.random.key(2), 8)
    whole = BlockMasking()(keys, grid=(14, 14))
    np.testing.assert_array_equal(BlockMasking()(keys[5:], grid=(14, 14)), whole[5:])
    assert len(np.unique(whole, axis=0)) == 8


def test_one_trace_inside_a_step():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(keys):
        return jnp.sum(BlockMasking()(keys, grid=(14, 14)), axis=1)

    for seed in range(3):
        np.testing.assert_array_equal(step(jax.random.split(jax.random.key(seed), 4)), [75] * 4)


@pytest.mark.parametrize(
    'fields, named',
    [
        ({'max_block': 10}, 'max_block'),
        ({'min_aspect': 2.0}, 'min_aspect'),
        ({'min_aspect': 0.5, 'max_aspect': 0.3}, 'max_aspect'),
    ],
)
def test_impossible_values_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        BlockMasking(**fields)


@pytest.mark.parametrize(
    'rule, grid, named',
    [
        (BlockMasking(num_masked=197), (14, 14), 'num_masked = 197'),
        (BlockMasking(num_masked=196), (14, 14), 'num_masked = 196'),
        (BlockMasking(num_masked=8, min_block=10), (4, 4), 'min_block = 10'),
    ],
)
def test_what_the_grid_cannot_hold_is_the_users_mistake(rule, grid, named):
    with pytest.raises(UserError, match=named):
        rule(jax.random.split(jax.random.key(0), 2), grid=grid)
