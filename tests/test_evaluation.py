"""What a run evaluates and draws: every view of the objective, evaluators by their registry."""

import dataclasses

import jax
import numpy as np
import pytest

from mim_jax import data, experiment, sharding
from mim_jax.data import Colors, View
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators import EVALUATORS
from mim_jax.objectives import Classification
from mim_jax.program import Program
from mim_jax.visualize import draw


@dataclasses.dataclass(frozen=True)
class ManyViews(Classification):
    """Sees as much of an item as there is, and draws a map."""

    second: View | None = None

    def views(self, data):
        crop = dataclasses.replace(data.crop, mode='random')
        return {
            'images': data.view(maps=('mask',), boxes=True, flip=0.5),
            'same': data.view(like='images', colors=Colors(hue=0.1)),
            'crop': data.view(crop=crop, boxes=True, maps=('mask',)),
            'small': self.second or data.view(crop=crop, image_size=(16, 16)),
        }

    def loss(self, variables, batch, key, step):
        loss, metrics, state = super().loss(variables, batch, key, step)
        for name in ('same', 'crop'):
            loss += 1e-3 * (batch[name] - batch['images']).mean()
        overlap = (batch['crop_boxes'] * batch['images_boxes']).mean() + batch['small'].mean()
        flipped = batch['images_flipped'] ^ batch['crop_flipped']
        return loss, metrics | {'overlap': overlap, 'flipped': flipped.mean()}, state

    def pictures(self, variables, batch, key, step):
        mask = batch['crop_mask'].reshape(-1, 4, 8, 4, 8).mean((2, 4)) > 0.5
        return {'mask': mask.reshape(-1, 16)}


def make_run(tiny_config, **fields):
    config = tiny_config('classification')
    config.mesh.data = 1
    return dataclasses.replace(experiment.from_config(config), objective=ManyViews(**fields))


def make_program(run, source):
    return Program.make(run, epoch_examples=64, fields=source.fields)


def test_an_objective_of_many_views_trains_is_evaluated_and_drawn(tiny_config):
    run = make_run(tiny_config)
    source = data.make_source(run.data, split='train')
    program = make_program(run, source)
    batches = data.train_batches(source, run.data, seed=0, views=program.views)
    batch = sharding.put_batch(next(batches), program.mesh)
    arrays = program.abstract_batch
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in arrays.items()
    }
    state, metrics = program.trace().lower().compile()(program.init({}), batch)
    assert np.isfinite(metrics['loss']) and 0 < metrics['flipped'] < 1
    evaluation = Evaluation(program, source)
    assert 'eval/knn/top1' in evaluation.run(state.variables)
    sample = evaluation.sample(3)
    assert sample.keys() - arrays.keys() == {'index', 'valid'} and sample['small'].shape[0] == 3
    # Evaluation scenes as they are, the second of three from all over them.
    scenes = data.make_source(run.data, split='test')
    np.testing.assert_array_equal(sample['images'][1], scenes[32 // 3]['image'])
    sheets = draw(program.objective, state.variables, sample, views=evaluation.views)
    assert set(sheets) == {'mask', 'features'}


def test_views_of_absent_fields_are_told_when_the_objective_is_bound(tiny_config):
    run = make_run(tiny_config, second=View(crop=data.Crop(), image_size=(8, 8), of='other'))
    source = data.make_source(run.data, split='train')
    with pytest.raises(UserError, match="'small' of this objective needs the image 'other'"):
        make_program(run, source)


def test_every_evaluator_has_its_section_by_the_registry(tiny_config):
    config = tiny_config('simmim')
    assert set(EVALUATORS) <= set(config.eval)
    config.eval.evaluators = ('knn', 'kmn')
    with pytest.raises(UserError, match="config.eval: evaluators: 'kmn' is none of knn"):
        experiment.from_config(config)
    sections = {f.name: f.type for f in dataclasses.fields(experiment.EvalConfig)}
    assert {name: sections[name] for name in EVALUATORS} == EVALUATORS


def test_without_one_label_there_is_nothing_to_evaluate(tiny_config):
    run = dataclasses.replace(make_run(tiny_config), objective=experiment.OBJECTIVES['mae']())
    source = data.make_source(run.data, split='train')
    source.fields = tuple(field for field in source.fields if field.name != 'label')
    evaluation = Evaluation(make_program(run, source), source)
    assert 'no labels' in evaluation.missing and evaluation.run({}) == {}
    assert jax.tree.map(np.shape, evaluation.sample(2)).keys() == {'images', 'index', 'valid'}
