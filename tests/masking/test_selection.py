import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_jax.masking import hidden_ids, in_places, selection, visible_ids
from mim_jax.masking.selection import lowest


def test_visible_ids_are_the_positions_that_are_not_hidden_ascending():
    rng = np.random.default_rng(0)
    mask = rng.permuted(np.repeat([True, False], [13, 7])[None].repeat(5, axis=0), axis=1)
    ids = visible_ids(jnp.asarray(mask), num_visible=7)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, [np.flatnonzero(~row) for row in mask])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=12, max_size=12), st.integers(0, 12))
def test_lowest_marks_exactly_so_many_ties_by_position(scores, count):
    expected = np.zeros(12, bool)
    expected[np.argsort(scores, kind='stable')[:count]] = True
    np.testing.assert_array_equal(lowest(jnp.asarray(scores), count=count), expected)


def test_hidden_and_visible_places_make_the_whole():
    mask = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool)
    assert selection.hidden_ids(mask, num_hidden=2).tolist() == [[0, 3], [1, 2]]
    assert selection.visible_ids(mask, num_visible=2).tolist() == [[1, 2], [0, 3]]


def test_a_draw_by_weight_is_one_of_successive_draws():
    """Inclusion and first-pair frequencies against the closed form for two of three."""
    weights = np.array([5.0, 3.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 20000)
    taken = selection.drawn_by_weight(keys, np.tile(weights, (20000, 1)), count=2)
    assert (taken.sum(axis=1) == 2).all()
    p = weights / weights.sum()
    for left in range(3):
        # The one left out: drawn neither first nor second.
        i, j = (k for k in range(3) if k != left)
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        share = 1 - taken[:, left].mean()
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 20000)


def test_patches_without_weight_are_drawn_last():
    weights = np.tile(np.array([0.0, 1.0, 0.0, 1e-6]), (50, 1))
    taken = selection.drawn_by_weight(jax.random.split(jax.random.key(1), 50), weights, count=3)
    assert taken[:, [1, 3]].all() and 0 < taken[:, 0].sum() < 50


@pytest.mark.parametrize('num_hardest', [0, 2, 4])
def test_hardest_first_then_chance(num_hardest):
    rng = np.random.default_rng(0)
    score = rng.random((200, 9))
    draw = jax.jit(selection.hardest_first, static_argnames='count')
    keys = jax.random.split(jax.random.key(2), 200)
    mask = np.asarray(draw(keys, score, num_hardest=num_hardest, count=4))
    assert (mask.sum(axis=1) == 4).all()
    hardest = np.argsort(-score, axis=1)[:, :num_hardest]
    assert np.take_along_axis(mask, hardest, axis=1).all()
    # The others are taken equally often, whatever their score.
    ranked = np.take_along_axis(mask, np.argsort(-score, axis=1), axis=1)[:, num_hardest:]
    expected = (4 - num_hardest) / (9 - num_hardest)
    assert np.abs(ranked.mean(axis=0) - expected).max() < 0.15
    assert draw._cache_size() == 1


def test_tokens_of_both_kinds_come_to_their_places():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 8, 2))
    mask = np.stack([rng.permutation(8) < 3 for _ in range(3)])
    visible, hidden = (
        np.stack([x[row] for x, row in zip(tokens, m, strict=True)]) for m in (~mask, mask)
    )
    ids = {
        'visible_ids': visible_ids(mask, num_visible=5),
        'hidden_ids': hidden_ids(mask, num_hidden=3),
    }
    np.testing.assert_allclose(in_places(visible, hidden, **ids), tokens, rtol=1e-6)
