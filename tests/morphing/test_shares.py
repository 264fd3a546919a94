"""Several schedules in one step, each for its share of the global batch."""

import functools
import re

import chex
import jax
import numpy as np
import pytest

from mim_jax import experiment, keys, sharding
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.morphing import GROUPINGS, Morphing, morph
from mim_jax.morphing.bipartite import Bipartite
from mim_jax.program import Program

RNG = np.random.default_rng(0)
# What all tokens of an image have in common makes their order hard.
TOKENS = RNG.normal(size=(16, 24, 8)) + 2 * RNG.normal(size=(16, 1, 8))
TOKENS = TOKENS.astype(np.float32)
IMAGES = RNG.random((16, 32, 48, 3)).astype(np.float32)
KEYS = keys.per_example(jax.random.key(5), 16)
KEY = jax.random.key(3)
GIVEN = {'images': IMAGES, 'keys': KEYS}
FORMS = {name: kind() for name, kind in GROUPINGS.items() if name != 'layerwise'} | {
    'unprotected': Bipartite(protect_first=False),
    'inexact': Bipartite(exact=False),
}


def part(index, shares):
    """The arguments for one share of the batch."""
    rows = slice(index * 16 // shares, (index + 1) * 16 // shares)
    return TOKENS[rows], {name: value[rows] for name, value in GIVEN.items()}


@pytest.mark.parametrize('name', FORMS)
@pytest.mark.parametrize('shares', [2, 8])
def test_each_share_is_grouped_as_alone(name, shares):
    """The groups of an image are those of the code of one schedule, for that image's schedule."""
    one = Morphing(grouping=FORMS[name])
    several = Morphing(grouping=FORMS[name], num_shares=shares)
    found = several.groups(KEY, TOKENS, grid=(4, 6), **GIVEN)
    left = set()
    for index, key in enumerate(jax.random.split(KEY, shares)):
        tokens, given = part(index, shares)
        expected = one.groups(key, tokens, grid=(4, 6), **given)
        np.testing.assert_array_equal(found[index * 16 // shares :][: len(tokens)], expected)
        left.add(len(np.unique(expected[0])))
    assert len(left) > 1  # the shares' schedules differ


def test_one_share_draws_what_it_always_drew():
    one = Morphing().groups(KEY, TOKENS)
    schedule = Morphing().draw(KEY, num_tokens=24)
    np.testing.assert_array_equal(one, Bipartite()(TOKENS, schedule))


def test_a_pair_for_each_draw_whatever_the_shares():
    morphing = Morphing(num_draws=3, num_shares=4)
    pairs = morphing.pairs(KEY, TOKENS[::-1], TOKENS, keys=KEYS)
    assert len(pairs) == 3
    for key, (prediction, target) in zip(jax.random.split(KEY, 3), pairs, strict=True):
        groups = morphing.groups(key, TOKENS)
        np.testing.assert_array_equal(prediction, morph(TOKENS[::-1], groups))
        np.testing.assert_array_equal(target, morph(TOKENS, groups))


def test_microbatches_have_the_schedules_of_their_images():
    """`TrainStep` gives every A-th image to a microbatch."""
    morphing = Morphing(num_shares=4)
    whole = np.asarray(morphing.groups(KEY, TOKENS, keys=KEYS))
    for count in (2, 4):
        for first in range(count):
            rows = slice(first, None, count)
            found = morphing.groups(KEY, TOKENS[rows], keys=KEYS[rows])
            np.testing.assert_array_equal(found, whole[rows])


def test_one_compilation_serves_every_draw():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def groups(key):
        return Morphing(num_shares=4).groups(key, TOKENS)

    seen = {groups(jax.random.key(seed)).tobytes() for seed in range(4)}
    assert len(seen) == 4 and groups._cache_size() == 1


@pytest.mark.parametrize('shares', [2, 4, 8])
def test_no_token_travels(shares):
    """On a mesh devices agree, once per merging step, on whether any share has steps left."""
    expected = Morphing(num_shares=shares).groups(KEY, TOKENS)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    place = sharding.batch_sharding(mesh)

    @functools.partial(jax.jit, in_shardings=(None, place), out_shardings=place)
    def groups(key, tokens):
        return Morphing(num_shares=shares).groups(key, tokens)

    text = groups.lower(KEY, TOKENS).compile().as_text()
    moved = re.findall(
        r'= (\S+) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(', text
    )
    assert set(moved) <= {'pred[]'}
    np.testing.assert_array_equal(groups(KEY, TOKENS), expected)


def program(config, **mesh):
    config.model.drop_path = 0.0
    config.mesh.update({'data': 1, 'min_shard_size': 64, **mesh})
    config.optimizer.eps = 1e-3  # rounding decides the sign of the smallest gradients
    run = experiment.from_config(config)
    return Program.make(run, epoch_examples=64, fields=image_fields(10))


@pytest.mark.slow
def test_the_step_is_the_same_on_any_mesh_and_in_microbatches(tiny_config):
    found = []
    for accumulation, mesh in ((1, {}), (4, {}), (2, {'data': 2, 'fsdp': 2})):
        config = tiny_config('dtm', accumulation=accumulation)
        config.objective.morphing.num_shares = 4
        made = program(config, **mesh)
        images = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), np.uint8)
        struct = made.abstract_batch
        batch = {name: np.zeros(s.shape, s.dtype) for name, s in struct.items()}
        batch = sharding.put_batch(batch | {'images': images}, made.mesh)
        state = made.init(made.pretrained())
        _, metrics = made.trace().lower().compile()(state, batch)
        found.append(jax.device_get(metrics))
    for other in found[1:]:
        np.testing.assert_allclose(other['loss'], found[0]['loss'], rtol=2e-5)
        np.testing.assert_allclose(other['grad_norm'], found[0]['grad_norm'], rtol=2e-4)


def test_images_that_do_not_divide_are_told_before_anything_runs(tiny_config):
    config = tiny_config('dtm', accumulation=4)
    config.objective.morphing.num_shares = 8
    with pytest.raises(
        UserError, match='4 images are computed at once, which do not divide into 8 '
    ):
        program(config)
    config.objective.morphing.schedule = 'constant'  # nothing is drawn: nothing to share out
    program(config)
    with pytest.raises(ValueError, match='15 images do not divide into 4 equal shares'):
        Morphing(num_shares=4).groups(KEY, TOKENS[:15])


def test_layerwise_has_one_schedule_for_all():
    morphing = Morphing(num_shares=2, grouping=GROUPINGS['layerwise']())
    with pytest.raises(UserError, match='num_shares = 2: the teacher, in which'):
        morphing.check(24, network=True)
