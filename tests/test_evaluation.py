"""What a run evaluates and draws: every view of the objective, evaluators by their registry."""

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest

from mim_jax import data, encoding, experiment, panels, sharding
from mim_jax.data import Colors, View
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators import (
    EVALUATORS,
    KNN,
    Attentive,
    Augmented,
    FewShot,
    Health,
    Linear,
    recipe,
)
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
        return {'mask': [panels.Mask(mask.reshape(-1, 16))]}


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
    with pytest.raises(UserError, match="config.eval: evaluators: 'kmn' is none of .*knn"):
        experiment.from_config(config)
    sections = {f.name: f.type for f in dataclasses.fields(experiment.EvalConfig)}
    assert {name: sections[name] for name in EVALUATORS} == EVALUATORS


@dataclasses.dataclass(frozen=True)
class Seen:
    """An evaluator of nothing: keeps what it is given."""

    labels: ClassVar[bool] = False
    test: ClassVar[str] = 'optional'

    pool: str = 'mean'
    max_train: int | None = None
    max_test: int | None = None
    given: list = dataclasses.field(default_factory=list)

    def run(self, train, test, *, num_classes):
        self.given.append((train, test))
        yield 'classes', num_classes


class Blind(Seen):
    test = 'unused'


class Strict(Seen):
    labels, test = True, 'needed'


def evaluate(run, evaluators, *, labels=True):
    """Figures and `missing` of evaluators by name, in a program of fresh weights."""
    section = types.SimpleNamespace(
        evaluators=tuple(evaluators), use_ema=False, batch_size=run.data.batch_size, **evaluators
    )
    run = dataclasses.replace(run, eval=section)
    source = data.make_source(run.data, split='train')
    if not labels:
        source.fields = tuple(field for field in source.fields if field.name != 'label')
    program = make_program(run, source)
    evaluation = Evaluation(program, source)
    return evaluation.run(program.init({}).variables), evaluation.missing


@pytest.fixture
def class_token_run(tiny_config):
    def make(*, devices, batch_size):
        config = tiny_config('classification')
        config.mesh.data = devices
        config.data.batch_size = batch_size
        config.model.class_token = True
        return experiment.from_config(config)

    return make


@pytest.mark.parametrize('batch_size', [8, 24])
def test_features_are_the_same_on_any_mesh_and_batch(class_token_run, batch_size):
    given = []
    for devices, size in (1, 16), (8, batch_size):
        seen = {pool: Seen(pool=pool, max_train=50) for pool in ('mean', 'class', 'both')}
        figures, missing = evaluate(class_token_run(devices=devices, batch_size=size), seen)
        assert missing is None and figures['eval/mean/classes'] == 10
        given.append({pool: evaluator.given[0] for pool, evaluator in seen.items()})
    for pool, sets in given[0].items():
        for one, many, count in zip(sets, given[1][pool], (50, 32), strict=True):
            assert one.numbers.tolist() == many.numbers.tolist() == [*range(count)]
            assert one.labels.tolist() == many.labels.tolist() and len({*one.labels}) > 5
            np.testing.assert_allclose(one.rows, many.rows, atol=1e-5)
            assert one.rows.std() > 0.1
    for i in range(2):
        mean, token, both = (given[0][pool][i].rows for pool in ('mean', 'class', 'both'))
        np.testing.assert_array_equal(both, np.concatenate([token, mean], axis=1))


@pytest.mark.slow
def test_figures_are_the_same_on_any_mesh_and_batch(class_token_run):
    evaluators = {
        'knn': KNN(k=(3, 10), pool='both'),
        'fewshot': FewShot(shots=(1, 3), pool='class'),
        'linear': Linear(
            epochs=20,
            warmup_epochs=2,
            learning_rates=(1.0, 30.0),
            pool='both',
            blocks=(1, 2),
        ),
        'attentive': Attentive(
            epochs=5, warmup_epochs=1, batch_size=16, learning_rates=(0.1, 1.0), max_train=50
        ),
        'health': Health(max_train=50),
        'augmented': Augmented(views=3, max_train=11),
    }
    one, _ = evaluate(class_token_run(devices=1, batch_size=16), evaluators)
    many, _ = evaluate(class_token_run(devices=8, batch_size=24), evaluators)
    assert len(one) == 21 and one == pytest.approx(many, rel=1e-4)


def test_evaluators_share_one_pass_over_a_set(class_token_run, monkeypatch):
    passes = []
    real = data.eval_batches

    def counted(source, *arguments, **options):
        passes.append(len(source))
        return real(source, *arguments, **options)

    monkeypatch.setattr(data, 'eval_batches', counted)
    evaluators = {
        'a': Seen(),
        'b': Seen(pool='class', max_train=1000),
        'c': Seen(pool='both', max_train=20),
        'd': Blind(max_train=20),
    }
    evaluate(class_token_run(devices=1, batch_size=16), evaluators)
    assert sorted(passes) == [20, 32, 64]
    (a, test), (d, unused) = evaluators['a'].given[0], evaluators['d'].given[0]
    assert len(a.rows) == 64 and len(test.rows) == 32 and len(d.rows) == 20 and unused is None


def test_layers_are_given_through_the_final_norm(class_token_run):
    """Against an encoder that ends where the layer does."""
    run = class_token_run(devices=1, batch_size=16)
    recipes = recipe('class', blocks=2), recipe('mean', blocks=2), recipe('both', blocks=2)
    seen = Seen()
    object.__setattr__(seen, 'recipes', recipes)
    section = types.SimpleNamespace(evaluators=('seen',), use_ema=False, batch_size=16, seen=seen)
    run = dataclasses.replace(run, eval=section)
    source = data.make_source(run.data, split='train')
    program = make_program(run, source)
    params = program.init({}).variables['params']
    norm = params['encoder']['final_norm']
    norm['scale'] = 2.0 * norm['scale']  # so that two norms would show
    Evaluation(program, source).run({'params': params})
    shallow = dict(params['encoder'])
    shallow['blocks'] = jax.tree.map(lambda x: x[:1], shallow['blocks'])
    images = np.stack([source[i]['image'] for i in range(64)]).astype(np.float32) / 255
    whole = program.objective.features({'params': params}, images)
    short = dataclasses.replace(run.model, depth=1)
    first = short.apply({'params': shallow}, program.objective.inputs.normalize(images))
    means = [x.tokens.mean(axis=1) for x in (first, whole)]
    classes = [x.class_token for x in (first, whole)]
    found = seen.given[0][0]
    for rows, expected in zip(
        (found.rows, *found.further), (classes, means, [*classes, means[1]]), strict=True
    ):
        np.testing.assert_allclose(rows, np.concatenate(expected, axis=1), atol=1e-4)
    assert np.abs(classes[0] - classes[1]).max() > 0.1


class Views(Seen):
    views = 3


def test_augmented_views_are_functions_of_image_and_view(class_token_run):
    given = []
    for devices, size in (1, 16), (8, 24):
        run = class_token_run(devices=devices, batch_size=size)
        crop = dataclasses.replace(run.data.crop, mode='random')
        run = dataclasses.replace(
            run, data=dataclasses.replace(run.data, crop=crop, colors=Colors(hue=0.3))
        )
        seen = {'some': Views(max_train=10), 'plain': Seen(max_train=10)}
        evaluate(run, seen)
        given.append({name: evaluator.given[0] for name, evaluator in seen.items()})
    (some, test), plain = given[0]['some'], given[0]['plain'][0]
    assert some.numbers.tolist() == [*range(30)] and len(test.rows) == 96
    assert some.labels.tolist() == [label for label in plain.labels for _ in range(3)]
    # Again, and alone on another mesh: the same draws.
    np.testing.assert_allclose(given[1]['some'][0].rows, some.rows, atol=1e-4)
    views = some.rows.reshape(10, 3, -1)
    spread = np.abs(views - views.mean(axis=1, keepdims=True)).max(axis=(1, 2))
    assert (spread > 1e-3).all() and np.abs(views[:, 0] - plain.rows).max() > 1e-3
    assert len({*views[:, 0, 0].tolist()}) == 10


@pytest.mark.slow
def test_tokens_are_kept_only_where_they_are_asked_for(class_token_run, monkeypatch):
    kept = []
    real = encoding.collect

    def seen(feature_fn, batches):
        found = real(feature_fn, batches)
        kept.append({part.pooling: features.rows.shape for part, features in found.items()})
        return found

    monkeypatch.setattr(encoding, 'collect', seen)
    attentive = Attentive(epochs=2, warmup_epochs=0, max_train=20, max_test=10)
    run = class_token_run(devices=1, batch_size=16)
    evaluate(run, {'attentive': attentive, 'seen': Seen(max_train=20)})
    assert kept == [
        {'tokens': (20, 17, 32), 'mean': (20, 32)},
        {'tokens': (10, 17, 32)},
        {'mean': (32, 32)},
    ]


def test_too_many_tokens_and_blocks_are_told_at_the_start(class_token_run):
    run = class_token_run(devices=1, batch_size=16)
    # 52 images of 17 tokens of 32 numbers of 4 bytes.
    small = Attentive(max_train=20, max_gigabytes=52 * 17 * 32 * 4.01 / 1e9)
    evaluate(run, {'attentive': dataclasses.replace(small, epochs=1, warmup_epochs=0)})
    large = dataclasses.replace(small, max_gigabytes=small.max_gigabytes / 2)
    match = 'keep 0.000113 GB of features of 52 images .* max_test to 26 together'
    with pytest.raises(UserError, match=match):
        evaluate(run, {'attentive': large})
    with pytest.raises(UserError, match='config.eval.linear asks for the last 3 blocks, .* has 2'):
        evaluate(run, {'linear': Linear(blocks=(1, 3))})


def test_the_worked_example_of_an_evaluator_runs(class_token_run, monkeypatch):
    text = (Path(__file__).parents[1] / 'docs' / 'evaluation.md').read_text()
    code = re.search(r'<!-- test: evaluator -->\n```python\n(.*?)```', text, re.DOTALL).group(1)
    module = types.ModuleType('share')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    seen = Seen()
    evaluators = {'share': module.Share(), 'seen': seen}
    figures, _ = evaluate(class_token_run(devices=1, batch_size=16), evaluators)
    labels = seen.given[0][0].labels
    expected = max(np.sum(labels == c) for c in range(10)) / 64
    assert figures['eval/share/share'] == pytest.approx(expected)


def test_what_can_be_evaluated_without_labels_or_test_images(class_token_run):
    run = class_token_run(devices=1, batch_size=16)
    tokens = dataclasses.replace(run, objective=experiment.OBJECTIVES['mae']())
    evaluators = {'seen': Seen(), 'blind': Blind(), 'strict': Strict()}
    figures, missing = evaluate(tokens, evaluators, labels=False)
    assert figures == {'eval/seen/classes': None, 'eval/blind/classes': None}
    assert missing == 'No evaluation by strict: the training images have no labels.'
    assert evaluators['seen'].given[0][0].labels is None
    alone = dataclasses.replace(run, data=dataclasses.replace(run.data, eval_split=None))
    figures, missing = evaluate(alone, evaluators)
    assert figures == {'eval/seen/classes': 10, 'eval/blind/classes': 10}
    assert missing == 'No evaluation by strict: config.data.eval_split is none.'
    assert evaluators['seen'].given[1][1] is None


def test_without_one_label_there_is_nothing_to_evaluate(tiny_config):
    run = dataclasses.replace(make_run(tiny_config), objective=experiment.OBJECTIVES['mae']())
    source = data.make_source(run.data, split='train')
    source.fields = tuple(field for field in source.fields if field.name != 'label')
    evaluation = Evaluation(make_program(run, source), source)
    assert 'no labels' in evaluation.missing and evaluation.run({}) == {}
    assert jax.tree.map(np.shape, evaluation.sample(2)).keys() == {'images', 'index', 'valid'}


def test_an_evaluation_split_without_the_labels_is_one_sentence(tiny_config, monkeypatch):
    run = make_run(tiny_config)
    source = data.make_source(run.data, split='train')
    program = make_program(run, source)
    bare = types.SimpleNamespace(fields=data.image_fields())
    monkeypatch.setattr(data, 'make_source', lambda config, split: bare)
    with pytest.raises(UserError, match="eval_split = 'test' has no labels, the training split 10"):
        Evaluation(program, source)
