"""The one step: accumulation, meshes, EMA, one compilation, donated state, drop path and all."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import data, experiment, sharding
from mim_jax.data import image_fields
from mim_jax.losses import Weighted
from mim_jax.models.patches import patchify
from mim_jax.objectives.mae import MAE
from mim_jax.program import Program


def make_program(config, **mesh):
    config.mesh.update({'data': 1, 'min_shard_size': 64, **mesh})
    # Adam divides by the gradient's own size: without this, rounding decides where it is tiny.
    config.optimizer.eps = 1e-3
    return Program.make(experiment.from_config(config), epoch_examples=64, fields=image_fields(10))


def fresh(program):
    return program.init(program.pretrained())


def batches(program, count):
    run = program.run
    source = data.make_source(run.data, split='train')
    host = data.train_batches(source, run.data, seed=0)
    return [sharding.put_batch(next(host), program.mesh) for _ in range(count)]


def run_steps(program, count=3):
    """Final state, and metrics of every step."""
    state = fresh(program)
    step = program.trace().lower().compile()
    seen = []
    for batch in batches(program, count):
        state, metrics = step(state, batch)
        seen.append(jax.device_get(metrics))
    return state, seen


@pytest.mark.slow
def test_any_mesh_trains_alike(tiny_config):
    """Same draws, same losses, same parameters on all axes of a mesh. (Every method on two meshes,
    and in microbatches: tests/objectives/test_conformance.py.)
    """
    state, seen = run_steps(make_program(tiny_config('dtm')))
    for variant in (dict(data=2, fsdp=2, tensor=2), dict(data=2, fsdp=4)):
        other, other_seen = run_steps(make_program(tiny_config('dtm'), **variant))
        for mine, theirs in zip(seen, other_seen, strict=True):
            np.testing.assert_allclose(theirs['loss'], mine['loss'], rtol=2e-5)
            np.testing.assert_allclose(theirs['grad_norm'], mine['grad_norm'], rtol=2e-4)
        chex.assert_trees_all_close(
            jax.device_get(other.variables['params']),
            jax.device_get(state.variables['params']),
            atol=float(seen[-1]['learning_rate']) * 0.01,
        )


def test_state_is_born_sharded_and_donated(tiny_config):
    program = make_program(tiny_config('dtm'), data=2, fsdp=4)
    state = fresh(program)
    for leaf, abstract in zip(
        jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
    kernel = state.variables['params']['encoder']['blocks']['mlp']['fc1']['kernel']
    assert 'fsdp' in kernel.sharding.spec
    moment = next(leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape)
    assert moment.sharding == kernel.sharding
    program.trace().lower().compile()(state, batches(program, 1)[0])
    assert kernel.is_deleted()


@pytest.mark.slow
def test_teacher_stays_as_it_was(tiny_config):
    program = make_program(tiny_config('dtm'))
    before = jax.device_get(fresh(program).variables['teacher'])
    state, _ = run_steps(program)
    chex.assert_trees_all_equal(jax.device_get(state.variables['teacher']), before)


def test_ema_is_the_average_of_the_parameters(tiny_config):
    config = tiny_config('mae', ema={'decay': 0.5, 'end_decay': 1.0})
    program = make_program(config)
    state, step = fresh(program), program.trace().lower().compile()
    expected = jax.device_get(state.variables['params'])
    for number, batch in enumerate(batches(program, 3)):
        state, _ = step(state, batch)
        decay = 1.0 - 0.5 * 0.5 * (1 + np.cos(np.pi * number / 4))
        new = jax.device_get(state.variables['params'])
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, expected, new)  # noqa: B023
    chex.assert_trees_all_close(
        jax.device_get(state.variables['ema']), expected, rtol=1e-5, atol=1e-7
    )


def test_every_draw_shares_one_trace(tiny_config):
    program = make_program(tiny_config('dtm'))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return program.step(state, batch)

    state = fresh(program)
    losses = set()
    for batch in batches(program, 4):
        state, metrics = step(state, batch)
        losses.add(float(metrics['loss']))
    assert len(losses) == 4


def test_draws_depend_on_seed_and_step_alone(tiny_config):
    program = make_program(tiny_config('simmim'))
    (batch,) = batches(program, 1)
    init, step = fresh(program), jax.jit(program.step)
    _, first = step(init, batch)
    _, again = step(init, batch)
    _, later = step(init.replace(step=jnp.int32(1)), batch)
    assert float(first['loss']) == float(again['loss'])
    assert float(first['loss']) != float(later['loss'])


class Counted(MAE):
    """The mean over hidden patches that are brighter than grey: how many differs between images."""

    def loss(self, variables, batch, key, step):
        images = batch['images']
        mask = self.mask(variables, batch, step)
        distance = self.distance(self.predict(variables, batch, mask), self.targets({}, images))
        bright = patchify(images, patch_size=self.encoder.patch_size).mean(axis=-1) > 0.5
        counted = (mask & bright).astype(jnp.float32)
        return Weighted((distance * counted).sum(), counted.sum()), {'bright': bright.mean()}, {}


@pytest.mark.slow
def test_a_mean_over_a_count_is_that_of_the_whole_batch(tiny_config):
    results = []
    for accumulation, mesh in ((1, {}), (4, {}), (2, {'data': 2, 'fsdp': 2})):
        config = tiny_config('mae', accumulation=accumulation)
        config.model.drop_path = 0.0
        config.mesh.update({'data': 1, 'min_shard_size': 64, **mesh})
        config.optimizer.eps = 1e-3
        run = experiment.from_config(config)
        fields = {f.name: getattr(run.objective, f.name) for f in dataclasses.fields(run.objective)}
        run = dataclasses.replace(run, objective=Counted(**fields))
        results.append(
            run_steps(Program.make(run, epoch_examples=64, fields=image_fields(10)), count=2)
        )
    (state, seen), *others = results
    for other, other_seen in others:
        for mine, theirs in zip(seen, other_seen, strict=True):
            np.testing.assert_allclose(theirs['loss'], mine['loss'], rtol=2e-5)
            np.testing.assert_allclose(theirs['grad_norm'], mine['grad_norm'], rtol=2e-4)
        chex.assert_trees_all_close(
            jax.device_get(other.variables['params']),
            jax.device_get(state.variables['params']),
            atol=float(seen[-1]['learning_rate']) * 0.01,
        )
