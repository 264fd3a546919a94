"""Every grouping as a field of a method's config."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.clock import Clock
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.losses import standardize_tokens
from mim_jax.morphing import GROUPINGS
from mim_jax.objectives import OBJECTIVES
from mim_jax.objectives.morphed import Morphed

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
CLOCK = Clock(16, epoch_examples=64, total_steps=30)


def make(config, *, clock=None, **assignments):
    given = [(f'objective.{name}', value) for name, value in assignments.items()]
    run = experiment.from_config(configs.override(config, experiment.Experiment, given))
    return assembly.make_objective(run, fields=image_fields(10), clock=clock)


@pytest.fixture
def prepared(tiny_config):
    """Function of config assignments -> objective, variables and a batch; no drop path."""

    def make_all(**assignments):
        config = tiny_config('dtm')
        config.model.update(drop_path=0.0, depth=1)
        objective = make(config, **assignments)
        images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
        variables = jax.jit(objective.init)(jax.random.key(1), images)
        batch = {'images': images, 'keys': keys.per_example(jax.random.key(2), 2)}
        return objective, variables, batch

    return make_all


@pytest.mark.slow
def test_every_grouping_trains(prepared):
    objective, variables, batch = prepared(**{'morphing.num_draws': '1'})
    for name, grouping in GROUPINGS.items():
        morphing = dataclasses.replace(objective.morphing, grouping=grouping())
        method = dataclasses.replace(objective, morphing=morphing)

        @jax.jit
        @jax.value_and_grad
        def loss(params, method=method):
            return method.loss({**variables, 'params': params}, batch, jax.random.key(3), 0)[0]

        value, gradient = loss(variables['params'])
        assert np.isfinite(value), name
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)), name


@pytest.mark.slow
def test_layerwise_compares_with_the_merged_teachers_output(prepared):
    """The loss by hand from the teacher's merged tokens; the option of DTM applies to them too."""
    objective, variables, batch = prepared(
        **{
            'morphing.grouping.name': 'layerwise',
            'morphing.schedule': 'constant',
            'morphing.num_merged': '6',
            'standardize_target': 'tokens',
            'distance.name': 'l2',
        }
    )
    mask = objective.masking(keys.named(batch['keys'], 'mask'), grid=objective.grid)
    prediction = np.float64(jax.jit(objective.predict)(variables, batch, mask))
    target, groups = jax.jit(objective.target.merged)(variables, batch['images'], 6)
    target = np.float64(standardize_tokens(target))
    losses = []
    for image in range(2):
        assert len(np.unique(groups[image])) == 10
        for token in range(16):
            members = np.asarray(groups[image] == groups[image, token])
            student = prediction[image][members].mean(axis=0)
            losses.append(np.mean((student - target[image, token]) ** 2))
    found = jax.jit(objective.loss)(variables, batch, jax.random.key(3), 0)[0]
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)
    _, shown = jax.jit(objective.pictures)(variables, batch, jax.random.key(3), 0)['groups']
    np.testing.assert_array_equal(shown.values, groups)


def test_layerwise_without_a_network_is_told_at_once(tiny_config):
    with pytest.raises(UserError, match="'layerwise' merges tokens inside the network"):
        make(
            tiny_config('simmim'),
            **{'morphing.grouping.name': 'layerwise', 'morphing.schedule': 'random'},
        )
    make(tiny_config('simmim'), **{'morphing.grouping.name': 'layerwise'})  # schedule none


def test_options_of_another_grouping_are_named(tiny_config):
    config = tiny_config('dtm')
    given = [('objective.morphing.grouping.compactness', '3')]
    with pytest.raises(UserError, match='morphing.grouping.compactness'):
        configs.override(config, experiment.Experiment, given)


@pytest.mark.parametrize('name', [n for n, kind in OBJECTIVES.items() if issubclass(kind, Morphed)])
def test_a_batch_has_as_many_parts_as_morphing_has_shares(name):
    """Where its schedule leaves something to draw."""
    config = configs.load(f'{CONFIGS / name}.py:embedded')
    config.objective.morphing.num_shares = 3
    for schedule, parts in (('random', 3), ('none', 1)):
        assert make(config, **{'morphing.schedule': schedule}, clock=CLOCK).batch_parts == parts
