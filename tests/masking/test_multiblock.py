"""I-JEPA's masks against plain loops over images, blocks and tries."""

import dataclasses

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.masking import Blocks, MultiBlockMasking
from tests.masking import reference

RULE = MultiBlockMasking(num_context=12)
KEYS = jax.random.split(jax.random.key(0), 40)
CASES = {
    'as released': (dataclasses.replace(RULE, num_context=5, kept='first'), (8, 8)),
    'hardly enough is left': (MultiBlockMasking(num_context=24), (8, 8)),
    'anywhere, with overlap': (
        dataclasses.replace(RULE, edge='used', overlap='allowed', num_targets=2),
        (7, 10),
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_blocks_are_those_of_the_loop(case):
    rule, grid = CASES[case]
    leaks, sizes = 0, set()
    for step in (6, 7):
        blocks = rule(KEYS, grid=grid, step=step)
        assert blocks.visible.shape == (40, rule.num_context)
        count = int(blocks.counted.sum())
        size = reference.step_sizes(step, rule, grid)[0]
        assert count == size[0] * size[1]
        sizes.add(size)
        np.testing.assert_array_equal(blocks.counted, np.arange(len(blocks.counted)) < count)
        expected = reference.multi_block(KEYS, step, rule, grid)
        for image, (visible, targets) in enumerate(expected):
            np.testing.assert_array_equal(blocks.visible[image], visible)
            found = np.asarray(blocks.targets[image])
            np.testing.assert_array_equal(found[:, :count], targets)
            assert set(found[:, count:].flat) <= set(found[:, :count].flat)
            leaks += bool(set(visible) & set().union(*targets))
    assert (leaks > 0) == (case != 'as released')
    assert len(sizes) == 2 or case != 'as released'


def test_sizes_on_imagenets_grid():
    """14 x 14: areas from 29 to 39, and a large block that has but one place."""
    targets, context = MultiBlockMasking().sizes((14, 14))
    assert set(map(tuple, targets)) == {(5, 6), (6, 6), (6, 5), (7, 5), (8, 5)}
    assert set(map(tuple, context)) == {(13, 13)}
    blocks = MultiBlockMasking()(KEYS, grid=(14, 14), step=0)
    assert blocks.visible.shape == (40, 50) and blocks.targets.shape == (40, 4, 40)
    for places in (blocks.visible, blocks.targets):
        rows, columns = np.divmod(np.asarray(places), 14)
        assert rows.max() < 13 and columns.max() < 13


def test_corners_are_equally_frequent():
    """4,000 blocks, 5 sigma."""
    for edge, last in (('free', 1), ('used', 0)):
        rule = dataclasses.replace(RULE, num_targets=1, edge=edge)
        keys = jax.random.split(jax.random.key(1), 4_000)
        blocks = rule(keys, grid=(8, 8), step=0)
        height, width = reference.step_sizes(0, rule, (8, 8))[0]
        corner = np.asarray(blocks.targets[:, 0, 0])
        for drawn, side in ((corner // 8, height), (corner % 8, width)):
            number = 8 - side - last + 1
            counts = np.bincount(drawn, minlength=number)
            assert len(counts) == number
            sigma = np.sqrt(4_000 / number * (1 - 1 / number))
            assert np.abs(counts - 4_000 / number).max() < 5 * sigma


def test_what_blocks_do_with_tokens():
    rng = np.random.default_rng(0)
    targets = np.array([[[0, 1, 4, 0], [1, 2, 5, 1]]])
    counted = np.array([True, True, True, False])
    blocks = Blocks(np.array([[3]]), targets, counted)
    tokens = rng.normal(size=(1, 6, 2)).astype('f')
    np.testing.assert_array_equal(blocks.of(tokens), tokens[0][targets[0]][None])
    groups = np.array([[3, 3, 1, 0, 1, 3]])
    np.testing.assert_array_equal(blocks.groups(groups), [[[0, 0, 2, 3], [0, 1, 0, 3]]])
    values = rng.normal(size=(1, 2, 4)).astype('f')
    np.testing.assert_allclose(blocks.mean(values), values[..., :3].mean(), rtol=1e-6)
    placed, there = blocks.placed(values[..., None], num_tokens=6)
    (a, b, c, _), (d, e, f, _) = values[0]
    np.testing.assert_allclose(placed[0, :, 0], [a, (b + d) / 2, e, 0, c, f], rtol=1e-6)
    np.testing.assert_array_equal(there, [[True, True, True, False, True, True]])
    covered = np.asarray(blocks.covered(num_tokens=6))[0]
    assert [set(np.flatnonzero(block)) for block in covered] == [{0, 1, 4}, {1, 2, 5}]


@pytest.mark.parametrize(
    'fields, grid, named',
    [
        ({'num_context': 50}, (8, 8), 'num_context = 50: the large block has 49 patches'),
        ({'target_scale': (0.01, 0.02)}, (8, 8), 'target_scale'),
        ({}, (1, 8), '1x8 patches holds no block'),
    ],
)
def test_what_the_grid_cannot_hold_is_the_users_mistake(fields, grid, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(RULE, **fields).count(grid)


def test_bounds_are_in_order():
    with pytest.raises(ValueError, match='target_aspect'):
        MultiBlockMasking(target_aspect=(1.5, 0.75))
