import chex
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.morphing import sample_schedule
from mim_jax.morphing.schedules import groups_left, merges_per_step


def by_hand(num_merged, num_steps, num_tokens):
    """The rule in floating point, as the text of the paper's code has it."""
    per_step = int(np.ceil(num_merged / num_steps))
    if per_step * num_steps > num_tokens:
        per_step = int(np.floor(num_merged / num_steps))
    return per_step


def sample(key, num_tokens, num_merged, num_steps):
    return sample_schedule(key, num_tokens=num_tokens, num_merged=num_merged, num_steps=num_steps)


def test_merges_per_step_for_all_draws_of_the_paper():
    merged, steps = np.meshgrid(np.arange(197), np.arange(1, 15), indexing='ij')
    found = merges_per_step(jnp.asarray(merged), jnp.asarray(steps), num_tokens=196)
    expected = np.vectorize(by_hand)(merged, steps, 196)
    np.testing.assert_array_equal(found, expected)
    assert (expected * steps <= 196).all()
    assert merges_per_step(100, 7, num_tokens=196) == by_hand(100, 7, 196)


def test_draws_have_the_distribution_of_the_rule():
    """Chi-square over all schedules of a small case, 20,000 draws: below its 99.9 % quantile."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: sample(key, 6, (0, 6), (1, 3))))
    found, counts = np.unique(np.stack(draw(keys)), axis=1, return_counts=True)
    expected = {}
    for merged in range(7):
        for steps in range(1, 4):
            schedule = (by_hand(merged, steps, 6), steps)
            expected[schedule] = expected.get(schedule, 0) + 20_000 / 21
    counts = dict(zip(map(tuple, found.T.tolist()), counts, strict=True))
    assert counts.keys() == expected.keys()
    chi_square = sum((counts[s] - e) ** 2 / e for s, e in expected.items())
    assert len(expected) == 14 and chi_square < 34.5  # 13 degrees of freedom


def test_bounds_are_inclusive():
    keys = jax.random.split(jax.random.key(1), 500)
    per_step, steps = jax.vmap(lambda key: sample(key, 8, (2, 5), (1, 1)))(keys)
    assert set(per_step.tolist()) == set(range(2, 6)) and set(steps.tolist()) == {1}


def test_schedule_is_two_int32_scalars():
    chex.assert_shape(sample(jax.random.key(0), 196, (0, 196), (1, 14)), ())
    chex.assert_type(sample(jax.random.key(0), 196, (0, 196), (1, 14)), jnp.int32)


def test_groups_left():
    assert groups_left(196, 98, 1, protect_first=False) == 98
    assert groups_left(196, 98, 1, protect_first=True) == 196 - 97
    assert groups_left(16, 100, 10, protect_first=True) == 2
    assert groups_left(16, 100, 10, protect_first=False) == 1


def test_groups_left_of_traced_schedules():
    traced = jax.jit(groups_left, static_argnums=0, static_argnames='protect_first')
    for protect_first in (True, False):
        for r, k in [(0, 3), (1, 1), (3, 9), (8, 2), (100, 4)]:
            found = traced(21, jnp.int32(r), jnp.int32(k), protect_first=protect_first)
            assert found.dtype == jnp.int32
            assert found == groups_left(21, r, k, protect_first=protect_first)
