import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_jax.masking import visible_ids
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
