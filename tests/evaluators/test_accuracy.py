"""The accuracy judge: against scikit-learn, on any mesh and batch."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn import metrics

from mim_jax import data, experiment
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators.features import ranks_of
from mim_jax.program import Program


@pytest.fixture
def make(tiny_config):
    """Function devices, batch size, … -> (program of a classifier that is not sure, evaluation)."""

    def make(objective='classification', *, devices=1, batch_size=16, **fields):
        config = tiny_config(objective)
        config.mesh.data = devices
        config.eval.update(evaluators=('accuracy',), batch_size=batch_size)
        config.eval.accuracy.update(fields)
        if objective == 'classification':
            config.objective.head_scale = 1.0
        run = experiment.from_config(config)
        source = data.make_source(run.data, split='train')
        program = Program.make(run, epoch_examples=64, fields=source.fields)
        return program, Evaluation(program, source)

    return make


@pytest.mark.parametrize(
    ('devices', 'batch_size', 'count'), [(1, 16, 32), (8, 24, 32), (4, 12, 29)]
)
def test_figures_are_those_of_scikit_learn_on_any_mesh_and_batch(make, devices, batch_size, count):
    program, evaluation = make(devices=devices, batch_size=batch_size, max_test=count)
    variables = program.init({}).variables
    source = data.make_source(program.run.data, split='test')
    items = [source[i * 32 // count] for i in range(count)]
    images = np.stack([item['image'] for item in items]).astype(np.float32) / 255
    labels = np.array([item['label'] for item in items])
    logits = np.asarray(program.objective.logits(jax.device_get(variables), images), np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {
        'eval/accuracy/top1': metrics.accuracy_score(labels, scores.argmax(axis=1)),
        'eval/accuracy/top5': metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(10)),
        'eval/accuracy/loss': metrics.log_loss(labels, scores, labels=range(10)),
    }
    assert 0 < expected['eval/accuracy/top5'] < 1
    assert evaluation.run(variables) == pytest.approx(expected, rel=1e-5)
    confusion = metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=range(10))
    np.testing.assert_array_equal(evaluation.confusions['accuracy'], confusion)
    # A second evaluation of a run compiles nothing anew, and says the same.
    assert evaluation.run(variables) == pytest.approx(expected, rel=1e-5)
    assert [step._cache_size() for step in evaluation._compiled_by_judges.values()] == [1]


def test_ranks_of_ties_and_of_what_is_not_finite():
    logits = np.array([[1, 3, 3, 0], [1, 3, 3, 0], [2, 1, 0, -1], [np.nan, 1, 2, 3]], np.float32)
    labels = np.array([1, 2, 3, 3])
    assert ranks_of(logits, labels).tolist() == [0, 1, 3, 4]


def test_the_average_is_judged_where_it_is_asked_for(make):
    program, evaluation = make()
    variables = program.init({}).variables
    run = dataclasses.replace(
        program.run,
        train=dataclasses.replace(
            program.run.train, ema=dataclasses.replace(program.run.train.ema, decay=0.9)
        ),
        eval=dataclasses.replace(program.run.eval, use_ema=True),
    )
    source = data.make_source(run.data, split='train')
    averaged = Evaluation(Program.make(run, epoch_examples=64, fields=source.fields), source)
    other = jax.tree.map(lambda x: 0.0 * x, variables['params'])
    figures = averaged.run({'params': other, 'ema': variables['params']})
    assert figures == evaluation.run(variables)


def test_an_objective_that_classifies_nothing_is_one_sentence(make):
    with pytest.raises(UserError, match="names 'accuracy', which judges .* predicts none"):
        make('simmim')
