import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.morphing import GROUPINGS, Morphing, bipartite_groups, placed
from mim_jax.morphing.bipartite import Bipartite
from mim_jax.morphing.layerwise import Layerwise

TOKENS = np.random.default_rng(0).standard_normal((2, 16, 4)).astype(np.float32)
PREDICTION = np.random.default_rng(1).standard_normal((2, 16, 4)).astype(np.float32)


def test_none_leaves_every_token_alone():
    morphing = Morphing(schedule='none')
    groups = morphing.groups(jax.random.key(0), TOKENS)
    np.testing.assert_array_equal(groups, np.broadcast_to(np.arange(16), (2, 16)))
    ((prediction, target),) = morphing.pairs(jax.random.key(0), PREDICTION, TOKENS)
    np.testing.assert_array_equal(prediction, PREDICTION)
    np.testing.assert_array_equal(target, TOKENS)


def test_constant_takes_the_given_schedule_whatever_the_key():
    grouping = Bipartite(protect_first=False)
    morphing = Morphing(schedule='constant', num_merged=7, num_steps=3, grouping=grouping)
    expected = bipartite_groups(TOKENS, 3, 3, protect_first=False)
    for seed in range(3):
        np.testing.assert_array_equal(morphing.groups(jax.random.key(seed), TOKENS), expected)
    assert len(morphing.pairs(jax.random.key(0), PREDICTION, TOKENS)) == 1


@pytest.mark.parametrize(
    'schedule, numbers, steps',
    [
        ('random', range(6), range(1, 4)),
        ('fixed_number', [7], range(1, 4)),
        ('fixed_steps', range(6), [4]),
        ('constant', [7], [4]),
    ],
)
def test_a_schedule_draws_what_it_does_not_fix(schedule, numbers, steps):
    """300 draws meet every schedule that the rule allows, and no other."""
    morphing = Morphing(schedule=schedule, max_merged=5, max_steps=3, num_merged=7, num_steps=4)
    per_step, num_steps = jax.vmap(lambda key: jnp.stack(morphing.draw(key, num_tokens=16)))(
        jax.random.split(jax.random.key(0), 300)
    ).T
    found = set(zip(per_step.tolist(), num_steps.tolist(), strict=True))
    # 16 tokens always suffice for the number of merged tokens rounded up to whole ones per step.
    assert found == {(-(-n // k), k) for n in numbers for k in steps}


@pytest.mark.parametrize('schedule', ['random', 'fixed_number', 'fixed_steps'])
@pytest.mark.parametrize('num_draws', [1, 3])
def test_every_schedule_that_draws_gives_a_pair_for_each_draw(schedule, num_draws):
    morphing = Morphing(schedule=schedule, num_draws=num_draws)
    assert len(morphing.pairs(jax.random.key(0), PREDICTION, TOKENS)) == num_draws


def test_a_grouping_without_steps_has_nothing_to_draw_for_a_fixed_number():
    morphing = Morphing(schedule='fixed_number', num_draws=3, grouping=Layerwise())
    asked = []

    def merged(number):
        asked.append(int(number))
        return TOKENS, np.zeros((2, 16), np.int32)

    assert len(morphing.pairs(jax.random.key(0), PREDICTION, TOKENS, merged=merged)) == 1
    assert asked == [8]


def test_random_draws_one_schedule_for_each_pair():
    pairs = Morphing(num_draws=6).pairs(jax.random.key(0), PREDICTION, TOKENS)
    assert len(pairs) == 6
    numbers = {len(np.unique(target[0], axis=0)) for _, target in pairs}
    assert len(numbers) > 1
    # Prediction and target are averaged over the same groups.
    for prediction, target in pairs:
        for image in range(2):
            same = (target[image][:, None] == target[image][None]).all(axis=-1)
            expected = same @ PREDICTION[image] / same.sum(axis=-1, keepdims=True)
            np.testing.assert_allclose(prediction[image], expected, atol=1e-6)


def test_pairs_have_a_gradient_for_the_prediction():
    def loss(prediction, target):
        pairs = Morphing().pairs(jax.random.key(3), prediction, target)
        return sum(((p - t) ** 2).mean() for p, t in pairs)

    gradient = jax.grad(loss)(PREDICTION, TOKENS)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_max_merged_bounds_the_draw():
    morphing = Morphing(max_merged=3, max_steps=1)
    for seed in range(20):
        assert np.asarray(morphing.groups(jax.random.key(seed), TOKENS)).max() + 1 >= 16 - 3


@pytest.mark.parametrize('schedule', ['random', 'fixed_number', 'fixed_steps', 'constant', 'none'])
def test_examples_are_titled_by_the_groups_they_have(schedule):
    groups, titles = Morphing(schedule=schedule).examples(TOKENS)
    assert groups.shape == (len(titles), 2, 16)
    for found, title in zip(np.asarray(groups), titles, strict=True):
        assert title.startswith(f'{found.max() + 1} groups, ')


@pytest.mark.parametrize(
    'fields, named',
    [
        ({'schedule': 'fixed'}, 'schedule'),
        ({'max_merged': -1}, 'max_merged'),
        ({'num_merged': -1}, 'num_merged'),
        ({'max_steps': 0}, 'max_steps'),
        ({'num_steps': 0}, 'num_steps'),
        ({'num_draws': 0}, 'num_draws'),
        ({'num_shares': 0}, 'num_shares'),
    ],
)
def test_impossible_values_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        Morphing(**fields)


@pytest.mark.parametrize(
    'morphing', [Morphing(max_merged=17), Morphing(schedule='constant', num_merged=17)]
)
def test_more_merged_tokens_than_there_are_is_the_users_mistake(morphing):
    with pytest.raises(UserError, match='only 16 tokens'):
        morphing.groups(jax.random.key(0), TOKENS)


def test_a_grouping_of_places_needs_the_whole_grid():
    superpixels = Morphing(grouping=GROUPINGS['superpixels']())
    superpixels.check(16)
    with pytest.raises(UserError, match="'superpixels' is formed on the whole grid"):
        superpixels.check(16, grid=False)
    dataclasses.replace(superpixels, schedule='none').check(16, grid=False)
    for name in set(GROUPINGS) - {'superpixels', 'layerwise'}:
        Morphing(grouping=GROUPINGS[name]()).check(16, grid=False)


def test_groups_of_some_tokens_are_placed_among_the_others():
    groups, places = np.array([[0, 1, 0], [2, 1, 2]]), np.array([[1, 2, 4], [0, 3, 5]])
    found = placed(groups, places, num_tokens=6)
    assert found.dtype == jnp.int32
    assert found.tolist() == [[0, 1, 2, 3, 1, 5], [5, 1, 2, 3, 4, 5]]


def test_panels_show_groups_of_some_tokens_where_these_are():
    morphing = Morphing(schedule='constant', num_merged=2)
    tokens = jax.random.normal(jax.random.key(0), (2, 4, 3))
    (alone,), (among,) = (
        morphing.panels(tokens),
        morphing.panels(tokens, places=np.array([[1, 2, 4, 5], [0, 3, 4, 6]]), num_tokens=7),
    )
    assert among.title == alone.title and among.values.shape == (2, 7)
    assert alone.protected.tolist() == [0, 0] and among.protected.tolist() == [1, 0]
    free = dataclasses.replace(morphing, grouping=Bipartite(protect_first=False))
    assert free.panels(tokens)[0].protected is None
    for image, places in enumerate([[1, 2, 4, 5], [0, 3, 4, 6]]):
        groups = [set(np.flatnonzero(row == n)) for row in [among.values[image]] for n in row]
        for place in range(7):
            expected = {place}
            if place in places:
                own = alone.values[image, places.index(place)]
                expected = {places[i] for i in np.flatnonzero(alone.values[image] == own)}
            assert groups[place] == expected
