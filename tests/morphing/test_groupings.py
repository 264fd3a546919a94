"""What every grouping promises, whichever it is."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.morphing import GROUPINGS, Morphing, groups_left

NAMES = sorted(set(GROUPINGS) - {'layerwise'})  # see test_layerwise.py
GRID = (4, 6)
RNG = np.random.default_rng(0)
TOKENS = RNG.standard_normal((3, 24, 5)).astype(np.float32)
TOKENS[0, 4:7] = TOKENS[0, 3]  # tokens that repeat each other
IMAGES = RNG.uniform(0, 1, (3, 16, 24, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(7), 3)


def grouped(name, per_step, steps, tokens=TOKENS, images=IMAGES, keys=KEYS):
    schedule = jnp.int32(per_step), jnp.int32(steps)
    return GROUPINGS[name]()(tokens, schedule, keys=keys, images=images, grid=GRID)


@pytest.mark.parametrize('name', NAMES)
def test_a_schedule_that_joins_nothing_leaves_every_token_alone(name):
    for schedule in [(0, 5), (3, 0)]:
        groups = grouped(name, *schedule)
        assert groups.dtype == jnp.int32
        np.testing.assert_array_equal(groups, np.broadcast_to(np.arange(24), (3, 24)))


@pytest.mark.parametrize('name', NAMES)
def test_there_are_no_more_groups_than_the_schedule_leaves(name):
    for schedule in [(2, 3), (5, 1), (12, 1), (3, 9), (24, 14)]:
        groups = np.asarray(grouped(name, *schedule))
        left = groups_left(24, *schedule, protect_first=name == 'bipartite')
        # Superpixels lie on a grid of seeds, whose number is rounded.
        bound = left + 2 if name == 'superpixels' else left
        assert groups.min() >= 0 and groups.max() < bound
        if name in ('bipartite', 'random'):
            assert all(len(np.unique(image)) == left for image in groups)


@pytest.mark.parametrize('name', NAMES)
def test_one_compilation_serves_every_schedule(name):
    chex.clear_trace_counter()  # its names are those of functions, and the cases share one

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def groups(schedule):
        return GROUPINGS[name]()(TOKENS, schedule, keys=KEYS, images=IMAGES, grid=GRID)

    for r, k in [(0, 1), (1, 14), (3, 4), (24, 2)]:
        np.testing.assert_array_equal(groups((jnp.int32(r), jnp.int32(k))), grouped(name, r, k))


@pytest.mark.parametrize('name', NAMES)
def test_an_image_is_grouped_the_same_in_every_batch(name):
    whole = grouped(name, 4, 4)
    for image in range(3):
        part = (x[image : image + 1] for x in (TOKENS, IMAGES, KEYS))
        alone = grouped(name, 4, 4, **dict(zip(('tokens', 'images', 'keys'), part, strict=True)))
        np.testing.assert_array_equal(alone[0], whole[image])


@pytest.mark.parametrize('name', NAMES)
def test_no_gradient_flows_through_the_grouping(name):
    def loss(tokens):
        morphing = Morphing(schedule='constant', num_steps=2, grouping=GROUPINGS[name]())
        pairs = morphing.pairs(
            jax.random.key(0), TOKENS, tokens, keys=KEYS, images=IMAGES, grid=GRID
        )
        # Linear in the target: what is left of the gradient is that of the averages.
        return sum(jnp.sum(target) for _, target in pairs) / len(pairs)

    np.testing.assert_allclose(jax.grad(loss)(TOKENS), np.ones_like(TOKENS), atol=1e-5)


@pytest.mark.parametrize('name', ['kmeans', 'kmedoids', 'random'])
def test_what_is_drawn_per_image_is_drawn_anew_for_each_pair(name):
    morphing = Morphing(schedule='constant', num_draws=3, grouping=GROUPINGS[name]())
    assert len(morphing.pairs(jax.random.key(0), TOKENS, TOKENS)) == 3
    pairs = morphing.pairs(jax.random.key(0), TOKENS, TOKENS, keys=KEYS)
    targets = [np.asarray(target) for _, target in pairs]
    assert not np.array_equal(targets[0], targets[1])
    again = morphing.pairs(jax.random.key(1), TOKENS, TOKENS, keys=KEYS)
    np.testing.assert_array_equal(again[0][1], targets[0])  # the images' keys decide


@pytest.mark.parametrize('name', NAMES)
def test_pictures_of_every_grouping(name):
    morphing = Morphing(grouping=GROUPINGS[name]())
    groups, titles = morphing.examples(TOKENS, keys=KEYS, images=IMAGES, grid=GRID)
    assert groups.shape == (4, 3, 24)
    assert all('groups' in title for title in titles)


def test_superpixels_need_the_images():
    with pytest.raises(ValueError, match='pass images and grid'):
        grouped('superpixels', 2, 2, images=None)
