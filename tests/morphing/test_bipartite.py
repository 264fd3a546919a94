import functools
import importlib.util
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_jax.morphing import bipartite, bipartite_features, bipartite_groups, morph, pairs

_spec = importlib.util.spec_from_file_location('reference', Path(__file__).parent / 'reference.py')
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

SIZES = [(16, 8), (49, 16), (64, 32), (100, 24), (196, 48), (197, 256), (256, 16)]


def random_tokens(rng, kind, shape):
    noise = rng.standard_normal(shape)
    if kind == 'noise':
        return noise.astype(np.float32)
    if kind == 'lengths':
        return (noise * np.exp(rng.normal(size=(*shape[:2], 1)))).astype(np.float32)
    # Like a teacher's features: one large common part, a few objects, little of a token's own.
    centres = rng.standard_normal((4, shape[2]))
    objects = centres[rng.integers(0, 4, shape[:2])]
    return (0.15 * noise + objects + 2 * rng.standard_normal(shape[2])).astype(np.float32)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('kind', ['noise', 'lengths', 'objects'])
def test_groups_equal_the_step_by_step_definition(size, kind):
    """In every one of 7 x 3 x 56 = 1176 images, with schedules as DTM draws them and others."""
    num_tokens, width = size
    rng = np.random.default_rng([num_tokens, width, len(kind)])
    for case in range(14):
        protect_first = bool(case % 2)
        tokens = random_tokens(rng, kind, (4, num_tokens, width))
        num_steps = int(rng.integers(1, 15))
        most = num_tokens // num_steps if case < 12 else num_tokens
        tokens_per_step = int(rng.integers(0, most + 1))
        found = np.asarray(
            bipartite_groups(tokens, tokens_per_step, num_steps, protect_first=protect_first)
        )
        for image in range(4):
            expected = reference.groups(
                tokens[image], tokens_per_step, num_steps, protect_first=protect_first
            )
            np.testing.assert_array_equal(
                found[image], expected, err_msg=f'{tokens_per_step=} {num_steps=} {protect_first=}'
            )


def test_the_form_for_accelerators_gives_the_same_groups(monkeypatch):
    tokens = random_tokens(np.random.default_rng(3), 'objects', (3, 49, 32))
    expected = {
        (r, k, p): bipartite_groups(tokens, r, k, protect_first=p)
        for r in (3, 7)
        for k in (1, 7)
        for p in (True, False)
    }
    monkeypatch.setattr(bipartite, '_fold', bipartite._fold_matmul)
    other = jax.jit(bipartite._groups.__wrapped__)
    for (r, k, p), groups in expected.items():
        found = other(tokens, jnp.int32(r), jnp.int32(k), jnp.int32(p))
        np.testing.assert_array_equal(found, groups)


def test_no_slice_with_a_stride_gets_into_a_product():
    """XLA for GPUs can fail to compile that, see `matching.sides`."""
    products, tokens = jnp.ones((2, 1, 10, 10)), jnp.ones((1, 10, 3))
    position, number = jnp.zeros((1, 10), jnp.int32), jnp.int32(3)
    programs = [
        jax.make_jaxpr(bipartite._fold_matmul)(products, position, number),
        jax.make_jaxpr(functools.partial(bipartite_features.match, protected=number))(
            tokens, live=number, merges=number
        ),
    ]
    stride = re.compile(r'strides=\([^)]*2')
    for program in programs:
        assert 'dot_general' in str(program)
        assert not stride.search(str(program))
    assert stride.search(str(jax.make_jaxpr(lambda x: x[:, :, 0::2])(products)))


@pytest.mark.parametrize('count', [4, 5])
def test_digits_have_the_same_products_in_both_forms(count):
    """The largest digits and sums there may be, and others: exact, so equal to integers'."""
    rng = np.random.default_rng(count)
    digits = rng.integers(-(2**7), 2**7 + 1, (count, 2, 9, 512))
    digits[:, 0] = 2**7
    expected = {
        (i, j): np.einsum('bnd,bmd->bnm', digits[i], digits[j])
        for i in range(count)
        for j in range(i, count - i)
    }
    for form in (pairs._products, pairs._joined_products):
        found = form([jnp.asarray(digit, jnp.float32) for digit in digits])
        assert found.keys() == expected.keys()
        for key, product in found.items():
            np.testing.assert_array_equal(product, expected[key])


def test_one_compilation_serves_every_schedule():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def groups(tokens, tokens_per_step, num_steps):
        return bipartite_groups(tokens, tokens_per_step, num_steps, protect_first=True)

    tokens = random_tokens(np.random.default_rng(0), 'noise', (2, 49, 8))
    for r, k in [(0, 1), (1, 14), (7, 7), (24, 2), (49, 1)]:
        chex.assert_shape(groups(tokens, jnp.int32(r), jnp.int32(k)), (2, 49))
    assert groups._cache_size() == 1


def test_python_integers_do_not_compile_anew():
    tokens = jnp.ones((1, 21, 4))
    bipartite_groups(tokens, jnp.int32(3), jnp.int32(2), protect_first=False)
    before = bipartite._groups._cache_size()
    bipartite_groups(tokens, 4, 3, protect_first=False)
    assert bipartite._groups._cache_size() == before


cases = st.tuples(
    st.integers(0, 2**31), st.integers(0, 20), st.integers(1, 14), st.booleans(), st.booleans()
)


def draw(seed, spread):
    rng = np.random.default_rng(seed)
    return random_tokens(rng, 'lengths' if spread else 'noise', (2, 20, 6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases)
def test_group_numbers_are_a_partition_of_the_right_size(case):
    seed, r, k, protect_first, spread = case
    groups = np.asarray(bipartite_groups(draw(seed, spread), r, k, protect_first=protect_first))
    left = 20
    for _ in range(k):
        left -= min(r, (left - protect_first) // 2)
    for image in groups:
        assert sorted(set(image)) == list(range(left))
    if protect_first:
        assert (groups[:, 0] == 0).all() and (groups[:, 1:] != 0).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases)
def test_morphing_keeps_each_groups_mean_and_weighs_it_by_its_size(case):
    seed, r, k, protect_first, spread = case
    tokens = draw(seed, spread)
    groups = bipartite_groups(tokens, r, k, protect_first=protect_first)
    morphed = np.asarray(morph(tokens, groups))
    scale = np.abs(tokens).max()
    # Averaging twice is averaging once; the mean over all tokens does not change.
    np.testing.assert_allclose(morph(morphed, groups), morphed, atol=1e-6 * scale)
    np.testing.assert_allclose(morphed.mean(axis=1), tokens.mean(axis=1), atol=1e-6 * scale)
    for image in range(2):
        numbers, sizes = np.unique(groups[image], return_counts=True)
        means = [tokens[image][np.asarray(groups[image]) == g].mean(axis=0) for g in numbers]
        weighted = sum(s * np.square(m) for s, m in zip(sizes, means, strict=True)) / 20
        np.testing.assert_allclose(
            np.square(morphed[image]).mean(axis=0), weighted, rtol=1e-5, atol=1e-6 * scale**2
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases, st.integers(-20, 20))
def test_groups_do_not_depend_on_scale_or_neighbours(case, exponent):
    seed, r, k, protect_first, spread = case
    tokens = draw(seed, spread)
    groups = bipartite_groups(tokens, r, k, protect_first=protect_first)
    scaled = bipartite_groups(tokens * 2.0**exponent, r, k, protect_first=protect_first)
    np.testing.assert_array_equal(scaled, groups)
    swapped = bipartite_groups(tokens[::-1], r, k, protect_first=protect_first)
    np.testing.assert_array_equal(swapped[::-1], groups)


def test_ties_go_to_the_lowest_position():
    tokens = jnp.ones((1, 9, 3))
    # A is at 0, 2, 4, 6, 8 and B at 1, 3, 5, 7; the first two of A join the first of B.
    groups = bipartite_groups(tokens, 2, 1, protect_first=False)
    np.testing.assert_array_equal(groups[0], [3, 3, 3, 4, 0, 5, 1, 6, 2])
    groups = bipartite_groups(tokens, 2, 1, protect_first=True)
    np.testing.assert_array_equal(groups[0], [0, 3, 3, 4, 3, 5, 1, 6, 2])


def test_tokens_that_repeat_tie_after_merging():
    """Groups of 3, 5 and 7 equal tokens differ in the last bits of a float, and still tie."""
    token = np.random.default_rng(0).standard_normal(64)
    tokens = np.broadcast_to(token, (1, 64, 64)).astype(np.float32)
    for protect_first in (True, False):
        found = bipartite_groups(tokens, 5, 9, protect_first=protect_first)
        integers = np.ones((64, 1))  # here the definition's own arithmetic is exact
        expected = reference.groups(integers, 5, 9, protect_first=protect_first)
        np.testing.assert_array_equal(found[0], expected)


def test_tokens_of_norm_zero_join_without_nan():
    tokens = np.random.default_rng(1).standard_normal((2, 16, 4)).astype(np.float32)
    tokens[0, 3:9] = 0
    tokens[1] = 0
    for protect_first in (True, False):
        groups = np.asarray(bipartite_groups(tokens, 3, 4, protect_first=protect_first))
        for image in range(2):
            expected = reference.groups(tokens[image], 3, 4, protect_first=protect_first)
            np.testing.assert_array_equal(groups[image], expected)
        assert np.isfinite(morph(tokens, groups)).all()


@pytest.mark.parametrize('num_tokens', [1, 2, 3])
def test_few_tokens(num_tokens):
    tokens = np.random.default_rng(2).standard_normal((1, num_tokens, 5)).astype(np.float32)
    for protect_first in (True, False):
        found = bipartite_groups(tokens, 5, 5, protect_first=protect_first)
        expected = reference.groups(tokens[0], 5, 5, protect_first=protect_first)
        np.testing.assert_array_equal(found[0], expected)


def test_no_gradient_flows_through_the_grouping():
    tokens = jnp.asarray(random_tokens(np.random.default_rng(0), 'noise', (2, 16, 4)))

    def loss(target):
        groups = bipartite_groups(target, 3, 2, protect_first=True)
        return jnp.sum(jnp.sin(morph(tokens, groups)))

    np.testing.assert_array_equal(jax.grad(loss)(tokens), jnp.zeros_like(tokens))


def test_many_schedules_at_once():
    tokens = random_tokens(np.random.default_rng(5), 'noise', (2, 16, 4))
    r, k = jnp.array([0, 3, 8]), jnp.array([4, 5, 1])
    found = jax.vmap(lambda r, k: bipartite_groups(tokens, r, k, protect_first=False))(r, k)
    for i in range(3):
        expected = bipartite_groups(tokens, r[i], k[i], protect_first=False)
        np.testing.assert_array_equal(found[i], expected)


@pytest.mark.parametrize('form', ['_fold_scatter', '_fold_matmul'])
def test_images_are_grouped_where_they_lie(form, monkeypatch):
    """On a mesh no token travels between devices, and the groups are those of one device."""
    tokens = random_tokens(np.random.default_rng(6), 'objects', (8, 25, 16))
    schedule = jnp.int32(2), jnp.int32(3)
    expected = bipartite_groups(tokens, *schedule, protect_first=True)
    monkeypatch.setattr(bipartite, '_fold', getattr(bipartite, form))
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))

    @functools.partial(jax.jit, in_shardings=(sharding, None, None), out_shardings=sharding)
    def groups(tokens, r, k):
        return bipartite._groups.__wrapped__(tokens, r, k, jnp.int32(1))

    program = groups.lower(tokens, *schedule).compile()
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in program.as_text()
    np.testing.assert_array_equal(groups(tokens, *schedule), expected)


def test_tokens_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r'\[B, N, D\]'):
        bipartite_groups(jnp.ones((4, 8)), 1, 1, protect_first=True)
