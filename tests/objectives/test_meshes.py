"""Loss and gradients of every method of the registry, on one device and split in every way."""

from importlib.metadata import version

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax import sharding
from mim_jax.objectives import OBJECTIVES
from mim_jax.preflight import collectives
from tests.objectives.programs import BATCH, host_batches, make_program

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
# The compiler's newer emitters, which later ones always use and have no name for (see conftest.py).
EMITTERS = {'xla_cpu_use_fusion_emitters': True} if version('jaxlib').startswith('0.10.') else {}


def scanned(config):
    """Blocks as those of a large model: scanned, with heads for any axis; one to compile."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            scanned(value)
        elif name == 'scan':
            config.scan = True
    if 'model' in config and 'objective' in config:
        config.model.heads = 8


def compiled(program):
    """(state, batch) -> gradients, metrics and what is carried along, whole on every device."""
    function = jax.jit(
        sharding.on_mesh(program.step.gradients, program.mesh),
        out_shardings=sharding.replicated(program.mesh),
    )
    lowered = function.lower(program.abstract_state, program.abstract_batch)
    # A last bit of the tokens decides their groups: where there are any, by the compiler's newer
    # emitters (see conftest.py), with which a program rounds as it does on another mesh.
    morphing = getattr(program.objective, 'morphing', None)
    grouped = morphing is not None and morphing.schedule != 'none'
    return lowered.compile(EMITTERS if grouped else {})


@pytest.mark.slow
@pytest.mark.parametrize('method', OBJECTIVES)
def test_loss_and_gradients_are_the_same_on_every_mesh(method):
    """So is what a method carries along (`state`)."""
    programs = [
        make_program(method, change=scanned, **dict(zip(sharding.AXES, mesh, strict=True)))
        for mesh in ((1, 1, 1), *MESHES)
    ]
    images = programs[0].abstract_batch['images']
    state = jax.device_get(jax.jit(lambda: programs[0].step.init(images))())
    (batch,) = host_batches(programs[0], 1)

    def found(program):
        place = jax.tree.map(lambda x: x.sharding, program.abstract_state)
        given = sharding.put_tree(state, place), sharding.put_batch(batch, program.mesh)
        grads, metrics, extra = jax.device_get(compiled(program)(*given))
        return metrics['loss'], grads, extra

    loss, grads, extra = found(programs[0])
    total = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grads)))
    assert np.isfinite(loss) and total > 0
    for program in programs[1:]:
        other_loss, other_grads, other_extra = found(program)
        np.testing.assert_allclose(other_loss, loss, rtol=2e-5, err_msg=str(program.mesh))
        chex.assert_trees_all_close(other_extra, extra, rtol=1e-4, atol=1e-6)

        def check(path, mine, theirs):
            off = np.linalg.norm(theirs - mine) / (np.linalg.norm(mine) + 1e-3 * total)  # noqa: B023
            assert off < 1e-4, (sharding.path_name(path), off, program.mesh)  # noqa: B023

        jax.tree_util.tree_map_with_path(check, grads, other_grads)


@pytest.mark.slow
@pytest.mark.parametrize('method', OBJECTIVES)
def test_parameters_travel_and_activations_stay(method):
    """With parameters split over `fsdp`, chips send the same for a batch of any size, but for a
    number or two of each image, or what a method that looks at its whole batch compares. That all
    activations travel would nearly double it.
    """

    def sent(batch_size):
        def change(config):
            config.data.batch_size = batch_size

        program = make_program(method, change=change, data=2, fsdp=4)
        found = collectives.sent(program.trace().lower().compile().as_text())
        assert found['all-gather'] > 0
        return sum(found.values())

    whole = make_program(method).objective.needs_whole_batch
    assert sent(2 * BATCH) < (1.01 if whole else 1.001) * sent(BATCH)


@pytest.mark.slow
def test_more_chips_send_no_more_each():
    """Of R bytes that are split among n chips each sends (n - 1)/n R, gathering or reducing."""

    def whole(chips):
        def change(config):
            scanned(config)
            config.data.batch_size = 2 * chips

        program = make_program('dtm', change=change, fsdp=chips)
        sent = collectives.sent(program.trace().lower().compile().as_text())
        return sum(sent.values()) * chips / (chips - 1)

    np.testing.assert_allclose(whole(8), whole(4), rtol=0.02)
