"""What every method of the registry must do, each as its config's argument `embedded` builds it.

A new entry of OBJECTIVES needs no line here. Frozen networks have random weights: nothing is read.
"""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pytest

from mim_jax import (
    assembly,
    data,
    experiment,
    health,
    norms,
    sharding,
    work_directory,
)
from mim_jax import config as configs
from mim_jax.checkpoints import Checkpoints
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.objectives import OBJECTIVES
from mim_jax.panels import Panel
from mim_jax.program import Program
from mim_jax.visualize import draw
from mim_jax.weights import encoders
from mim_jax.weights.__main__ import main as weights
from tests.objectives.programs import BATCH, CONFIGS, STEPS, host_batches, make_program


@dataclasses.dataclass
class Compiled:
    """A program, its compiled step, and states and batches on its mesh."""

    program: Program

    def __post_init__(self):
        self.step = self.program.trace().lower().compile()
        place = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        images = self.program.abstract_batch['images']
        self.fresh = jax.jit(lambda: self.program.step.init(images), out_shardings=place)

    def batches(self, count):
        mesh = self.program.mesh
        return [sharding.put_batch(batch, mesh) for batch in host_batches(self.program, count)]

    def run(self, state, batches):
        """The state after the batches, and the metrics of each step."""
        seen = []
        for batch in batches:
            state, metrics = self.step(state, batch)
            seen.append(jax.device_get(metrics))
        return state, seen


@pytest.fixture(scope='module', params=OBJECTIVES)
def method(request):
    return request.param


@pytest.fixture(scope='module')
def alone(method):
    """The method on one device."""
    return Compiled(make_program(method))


def test_the_config_is_of_the_method_and_every_size_builds(method):
    # CIFAR-10 has no maps: a method that learns from them has no such size.
    program = make_program(method)
    maps = any(view.maps for view in program.views.values())
    for size in ('embedded', None) if maps else ('embedded', 'cifar10', None):
        spec = f'{CONFIGS / method}.py' + (f':{size}' if size else '')
        run = experiment.from_config(configs.load(spec))
        assert type(run.objective) is OBJECTIVES[method], size
        clock = Clock(run.data.batch_size, 1000, 100)
        fields = run.data.source.assumed_fields()
        objective = assembly.make_objective(run, fields=fields, clock=clock)
        images = assembly.batch_struct(run, objective)['images']
        params = jax.eval_shape(objective.init, jax.random.key(0), images)['params']
        assert params['encoder']['blocks']['norm1']['scale'].shape[0] == run.model.depth


@pytest.mark.slow
def test_accumulation_gives_the_update_of_the_whole_batch(method, alone):
    split = {'data': 2, 'fsdp': 2, 'accumulation': 2}
    if alone.program.objective.needs_whole_batch:
        with pytest.raises(UserError, match='needs its batch in one piece'):
            make_program(method, **split)
        return
    state, seen = alone.run(alone.fresh(), alone.batches(2))
    other = Compiled(make_program(method, **split))
    other_state, other_seen = other.run(other.fresh(), other.batches(2))
    for mine, theirs in zip(seen, other_seen, strict=True):
        assert np.isfinite(mine['grad_norm'])
        np.testing.assert_allclose(theirs['loss'], mine['loss'], rtol=2e-5)
        np.testing.assert_allclose(theirs['grad_norm'], mine['grad_norm'], rtol=5e-4)
    chex.assert_trees_all_close(
        jax.device_get(other_state.variables['params']),
        jax.device_get(state.variables['params']),
        atol=float(seen[-1]['learning_rate']) * 0.01,
    )


@pytest.mark.slow
def test_a_resumed_run_is_the_run_to_the_last_bit(alone, tmp_path):
    program, batches = alone.program, alone.batches(3)
    state, expected = alone.run(alone.fresh(), batches)
    half, _ = alone.run(alone.fresh(), batches[:2])
    frozen = {'teacher': half.variables['teacher']} if 'teacher' in half.variables else {}
    saving = Checkpoints(tmp_path, program.run.checkpoint, program.clock)
    saving.save(2, half, {})
    saving.close()
    reading = Checkpoints(tmp_path, program.run.checkpoint, program.clock)
    restored, _ = reading.restore(program.restorable())
    reading.close()
    restored = restored.replace(variables={**restored.variables, **frozen})
    resumed, seen = alone.run(restored, batches[2:])
    chex.assert_trees_all_equal(seen[0], expected[2])
    chex.assert_trees_all_equal(jax.device_get(resumed.variables), jax.device_get(state.variables))


@pytest.mark.slow
def test_the_loss_falls_on_one_batch(alone):
    """With its masks and schedules held, too: the step that they are drawn from stays the first."""
    state, (batch,) = alone.fresh(), alone.batches(1)
    losses = []
    for _ in range(STEPS):
        first = jax.device_put(np.int32(0), state.step.sharding)
        state, metrics = alone.step(state.replace(step=first), batch)
        losses.append(float(metrics['loss']))
    thirds = np.reshape(losses, (3, STEPS // 3)).mean(axis=1)
    assert np.isfinite(losses).all() and thirds[0] > thirds[1] > thirds[2], losses


@pytest.mark.slow
def test_pictures_draw(alone):
    program = alone.program
    run = program.run
    source = data.make_source(run.data, split='test')
    views = data.eval_views(run.data, program.views)
    batch = next(iter(data.eval_batches(source, run.data, views=views, batch_size=3)))
    batch = {name: batch[name] for name in program.abstract_batch}
    variables = alone.fresh().variables
    sheets = draw(program.objective, variables, batch, views=views, step=3)
    assert 'features' in sheets
    for sheet in sheets.values():
        assert sheet.dtype == np.uint8 and sheet.shape[0] > 3 * 200 and np.ptp(sheet) > 100
    again = draw(program.objective, variables, batch, views=views, step=3)
    chex.assert_trees_all_equal(sheets, again)


def test_pictures_are_panels_and_masks_are_exact(method):
    """Shapes alone: nothing is compiled."""
    program = make_program(method)
    objective = program.objective
    variables = program.abstract_state.variables
    keys = jax.ShapeDtypeStruct((BATCH,), jax.random.key(0).dtype)
    batch = {**program.abstract_batch, 'keys': keys}
    batch = jax.eval_shape(program.step.augment, keys, batch)
    key, step = jax.eval_shape(lambda: (jax.random.key(0), np.int32(0)))
    num_tokens = objective.grid[0] * objective.grid[1]
    mask = jax.eval_shape(objective.mask, variables, batch, step)
    if mask is not None:
        assert mask.shape == (BATCH, num_tokens) and mask.dtype == bool
    for sheet in jax.eval_shape(objective.pictures, variables, batch, key, step).values():
        assert sheet and all(isinstance(panel, Panel) for panel in sheet)
    loss, metrics, state = jax.eval_shape(objective.loss, variables, batch, key, step)
    assert all(x.shape == () and x.dtype == np.float32 for x in jax.tree.leaves((loss, metrics)))
    expected = variables.get('state', {})
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    encoded = jax.eval_shape(objective.features, variables, batch['images'])
    assert encoded.tokens.shape == (BATCH, num_tokens, objective.encoder.width)


def test_health_is_scalars_and_features(method):
    """Shapes alone: nothing is compiled."""

    def change(config):
        if 'morphing' in config.objective:
            config.objective.morphing.schedule = 'random'

    program = make_program(method, change=change, data=2, fsdp=2)
    given = program.abstract_state, program.abstract_batch
    found = jax.eval_shape(functools.partial(health.checkup, program), *given)
    assert found.pop('features').shape == (BATCH, program.run.model.width)
    assert all(x.shape == () and x.dtype == np.float32 for x in found.values())
    assert ('morphed_share' in found) == hasattr(program.objective, 'morphing')
    params = program.abstract_state.variables['params']
    names = norms.names(params)
    assert jax.eval_shape(norms.norms, params).shape == (len(names),)
    assert f'block_{program.run.model.depth:02}' in names


def test_an_average_that_lacks_a_part_is_refused(method):
    program = make_program(method)
    needed, params = program.objective.averaged, program.abstract_state.variables['params']
    if not needed:
        pytest.skip('the method reads no average')
    for part in needed:
        with pytest.raises(UserError, match=rf'config\.train\.ema\.parts leaves out {part}, but'):
            others = {'parts': tuple(name for name in params if name != part)}
            make_program(method, change=lambda config: config.train.ema.update(others))  # noqa: B023


def test_tokens_can_be_morphed(method):
    def change(config):
        config.objective.morphing.schedule = 'random'

    if not hasattr(OBJECTIVES[method](), 'morphing'):
        pytest.skip('prediction and target are not token-wise')
    program = make_program(method, change=change)
    metrics = jax.eval_shape(program.step, program.abstract_state, program.abstract_batch)[1]
    assert metrics['loss'].shape == ()

    def seven(config):
        config.objective.morphing.update(schedule='random', num_shares=7)

    with pytest.raises(UserError, match='16 images .* do not divide into 7 equal parts'):
        make_program(method, change=seven)


@pytest.mark.slow
def test_the_encoder_is_exported_and_read_again(alone, tmp_path):
    program = alone.program
    workdir = tmp_path / 'run'
    state = alone.fresh()
    work_directory.claim(workdir, program.run)
    saving = Checkpoints(workdir, program.run.checkpoint)
    saving.save(1, state, {})
    saving.close()
    assert weights(['export', f'--workdir={workdir}', f'--out={tmp_path / "encoder"}']) == 0
    stated, params = encoders.load_encoder(tmp_path / 'encoder')
    written = json.loads(json.dumps(dataclasses.asdict(program.run.model)))
    assert json.loads(json.dumps(stated)) == written
    chex.assert_trees_all_equal(params, jax.device_get(state.variables['params']['encoder']))
