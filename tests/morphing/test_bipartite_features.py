import functools
import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.morphing import bipartite_groups

_spec = importlib.util.spec_from_file_location('reference', Path(__file__).parent / 'reference.py')
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

bipartite_feature_groups = functools.partial(bipartite_groups, exact=False)


@pytest.mark.parametrize('shape', [(4, 2, 5), (4, 17, 8), (4, 64, 32), (2, 196, 48), (2, 197, 96)])
@pytest.mark.parametrize('protect_first', [True, False])
def test_groups_equal_those_of_the_exact_matrix(shape, protect_first):
    """Order included, on random tokens: 24 schedules, small and large ones, for each size.

    Left out are images in which two cosines differ by less than float32 can tell.
    """
    rng = np.random.default_rng([*shape, protect_first])
    compared = []
    for case in range(24):
        tokens = rng.standard_normal(shape).astype(np.float32)
        if case % 2:
            tokens *= np.exp(rng.normal(size=(*shape[:2], 1))).astype(np.float32)
        num_steps = int(rng.integers(1, 15))
        most = shape[1] if case % 3 == 0 else shape[1] // num_steps
        tokens_per_step = int(rng.integers(0, most + 1))
        schedule = jnp.int32(tokens_per_step), jnp.int32(num_steps)
        expected = bipartite_groups(tokens, *schedule, protect_first=protect_first)
        found = bipartite_feature_groups(tokens, *schedule, protect_first=protect_first)
        for image in range(shape[0]):
            gaps = [np.inf]
            reference.groups(
                tokens[image], tokens_per_step, num_steps, protect_first=protect_first, gaps=gaps
            )
            compared.append(min(gaps) > 1e-6)
            if compared[-1]:
                what = f'{image=} {tokens_per_step=} {num_steps=}'
                np.testing.assert_array_equal(found[image], expected[image], err_msg=what)
    assert np.mean(compared) > 0.5


def test_one_compilation_serves_every_schedule():
    chex.clear_trace_counter()

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def groups(tokens, tokens_per_step, num_steps):
        return bipartite_feature_groups(tokens, tokens_per_step, num_steps, protect_first=True)

    tokens = np.random.default_rng(0).standard_normal((2, 49, 8)).astype(np.float32)
    for r, k in [(0, 1), (1, 14), (7, 7), (24, 2), (49, 1)]:
        chex.assert_shape(groups(tokens, jnp.int32(r), jnp.int32(k)), (2, 49))
    assert groups._cache_size() == 1


def test_tokens_of_norm_zero_and_of_one_kind_join_without_nan():
    tokens = np.random.default_rng(1).standard_normal((3, 16, 4)).astype(np.float32)
    tokens[0, 3:9] = 0
    tokens[1] = 0
    tokens[2] = 1
    for protect_first in (True, False):
        found = bipartite_feature_groups(tokens, 3, 2, protect_first=protect_first)
        expected = bipartite_groups(tokens, 3, 2, protect_first=protect_first)
        np.testing.assert_array_equal(found, expected)


def test_a_single_token_and_other_ranks():
    assert bipartite_feature_groups(jnp.ones((2, 1, 3)), 1, 1, protect_first=False).tolist() == [
        [0],
        [0],
    ]
    with pytest.raises(ValueError, match=r'\[B, N, D\]'):
        bipartite_feature_groups(jnp.ones((4, 8)), 1, 1, protect_first=True)


def test_no_gradient_flows_through_the_grouping():
    def loss(tokens):
        groups = bipartite_feature_groups(tokens, 3, 2, protect_first=True)
        return jnp.sum(jnp.sin(groups.astype(jnp.float32)))

    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 4)), jnp.float32)
    np.testing.assert_array_equal(jax.grad(loss)(tokens), jnp.zeros_like(tokens))
