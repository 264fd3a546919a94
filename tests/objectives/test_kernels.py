"""A step with fused kernels on a mesh: that of one device without them."""

import functools

import jax
import numpy as np
import pytest

from mim_jax import sharding
from mim_jax.models.attention import KERNELS, attend
from mim_jax.models.attention_pallas import pallas_attention
from mim_jax.morphing import bipartite
from mim_jax.morphing.bipartite_pallas import pallas_groups
from mim_jax.preflight import collectives
from tests.objectives.programs import host_batches, make_program

INTERPRET = jax.default_backend() != 'tpu'
PLAIN = attend, bipartite._groups
FUSED = (
    functools.partial(pallas_attention, interpret='tpu' if INTERPRET else None),
    functools.partial(pallas_groups, interpret='tpu' if INTERPRET else None),
)


def with_kernels(config):
    config.model.update(heads=2, scan=True, attention_kernel='pallas', relative_position='shared')
    config.objective.target.model.update(heads=2, attention_kernel='pallas')
    config.objective.morphing.num_draws = 1
    config.objective.morphing.grouping.kernel = 'pallas'


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_with_kernels_and_no_more_is_sent(monkeypatch):
    def found(forms, state=None, batch=None, **mesh):
        """The initial state and a batch, or what was given; loss, gradients, and bytes that a
        device sends.
        """
        monkeypatch.setitem(KERNELS, 'pallas', forms[0])
        monkeypatch.setattr(bipartite, 'pallas_groups', forms[1])
        jax.clear_caches()  # of traces with other forms
        program = make_program('dtm', change=with_kernels, **mesh)
        if state is None:
            images = program.abstract_batch['images']
            state = jax.device_get(jax.jit(lambda: program.step.init(images))())
            (batch,) = host_batches(program, 1)
        step = jax.jit(
            sharding.on_mesh(program.step.gradients, program.mesh),
            out_shardings=sharding.replicated(program.mesh),
        )
        step = step.lower(program.abstract_state, program.abstract_batch).compile()
        place = jax.tree.map(lambda x: x.sharding, program.abstract_state)
        given = sharding.put_tree(state, place), sharding.put_batch(batch, program.mesh)
        grads, metrics, _ = jax.device_get(step(*given))
        sent = sum(collectives.sent(step.as_text()).values())
        return (state, batch), metrics['loss'], grads, sent

    mesh = dict(data=2, fsdp=2, tensor=2)
    given, loss, grads, _ = found(PLAIN)
    *_, sent = found(PLAIN, *given, **mesh)
    _, other_loss, other_grads, other_sent = found(FUSED, *given, **mesh)
    np.testing.assert_allclose(other_loss, loss, rtol=2e-5)
    total = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grads)))

    def check(path, mine, theirs):
        off = np.linalg.norm(theirs - mine) / (np.linalg.norm(mine) + 1e-3 * total)
        assert off < 1e-4, (sharding.path_name(path), off)

    jax.tree_util.tree_map_with_path(check, grads, other_grads)
    assert other_sent <= sent
