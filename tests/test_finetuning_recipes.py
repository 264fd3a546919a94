"""The recipes of fine-tuning and transfer: every argument builds, the published ones as published.

The facts are those of naver-ai/dtm and of microsoft/unilm, beit2: run_class_finetuning.py, the
commands in their documentation, and what these leave at its default.
"""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import assembly, config, experiment
from mim_jax.clock import Clock
from mim_jax.data import eval_views, image_fields
from mim_jax.errors import UserError
from mim_jax.objectives import Classification
from mim_jax.sharding import path_name
from mim_jax.weights import adapting

CONFIGS = Path(__file__).parent.parent / 'configs'
SIZES = ('vits', 'vitb', 'vitl', 'vitb_384', 'cifar10', 'embedded')
PRETRAINED = {
    'vits': 'dtm_vits',
    'vitb': 'dtm_vitb',
    'vitl': 'dtm_vitl',
    'vitb_384': 'dtm_vitb',
    'cifar10': 'dtm_cifar10',
    'embedded': 'quickstart',
}


def load(spec):
    name, _, size = spec.partition(':')
    return experiment.from_config(config.load(f'{CONFIGS / name}.py:{size}'))


def sets():
    sys.path.insert(0, str(CONFIGS))
    try:
        from transfer import SETS
    finally:
        sys.path.pop(0)
    return SETS


def params_of(run, *, classes=1000):
    clock = Clock(run.data.batch_size, 10_000, 100)
    objective = assembly.make_objective(run, fields=image_fields(classes), clock=clock)
    images = assembly.batch_struct(run, objective)['images']
    return objective, jax.eval_shape(objective.init, jax.random.key(0), images)['params']


def adapted_to(model, expected, trained):
    """What a run's encoder, all zeros here, gives to another model."""
    image = jax.ShapeDtypeStruct((1, *trained.data.image_size, 3), 'float32')
    shapes = jax.eval_shape(lambda: trained.model.init(jax.random.key(0), image))['params']
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    stated = dataclasses.asdict(trained.model)
    return adapting.adapt(stated, zeros, model, expected, what='it')


@pytest.mark.parametrize('size', SIZES)
def test_every_size_takes_the_encoder_that_its_pre_training_leaves(size):
    """Shapes alone: no weights are made."""
    tuned, trained = load(f'finetune:{size}'), load(f'{PRETRAINED[size]}:')
    assert isinstance(tuned.objective, Classification)
    assert tuned.eval.evaluators == ('accuracy',) and tuned.objective.mix_per == 'batch'
    objective, params = params_of(tuned)
    names = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert 'head/norm/scale' in names
    assert not any('final_norm' in name or 'mask_token' in name for name in names)
    assert not any(name.startswith('encoder/relative_position') for name in names)
    adapted = adapted_to(tuned.model, params['encoder'], trained)
    assert not adapted.fresh
    assert {name.split('/')[0] for name in adapted.left_out} <= {'mask_token', 'final_norm'}
    assert bool(adapted.resized) == (size == 'vitb_384')
    view = eval_views(tuned.data, objective.views(tuned.data))['images']
    assert view.transforms == () and view.crop.mode in ('centre', 'none')


def test_the_base_recipe_is_dtms():
    run = load('finetune:vitb')
    assert run == load('finetune:')
    randaugment = run.data.randaugment
    assert (randaugment.num_ops, randaugment.magnitude, randaugment.magnitude_std) == (2, 9.0, 0.5)
    assert randaugment.increasing and randaugment.interpolation == 'bicubic'
    assert run.data.view().transforms[0].fill == (124, 116, 104)  # round(255 mean)
    assert run.data.batch_size == 8 * 128 and run.data.eval_crop == 224 / 256
    assert run.data.crop.scale == (0.08, 1.0) and run.data.flip == 0.5
    objective = run.objective
    assert (objective.mixup, objective.cutmix, objective.switch) == (0.8, 1.0, 0.5)
    assert (objective.label_smoothing, objective.erasing) == (0.1, 0.25)
    assert (objective.pooling, objective.pool_norm, objective.head_scale) == ('mean', True, 0.001)
    optimizer = run.optimizer
    assert (optimizer.learning_rate, optimizer.scaling, optimizer.layer_decay) == (
        5e-4,
        'none',
        0.65,
    )
    assert (optimizer.warmup_learning_rate, optimizer.end_learning_rate) == (0.0, 1e-6)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert optimizer.weight_decay == 0.05 and optimizer.clip_norm is None
    assert optimizer.decay_also == ('relative_position',)
    assert run.model.drop_path == 0.1 and run.model.layer_scale == 0.1
    clock = assembly.make_clock(run, 1_281_167)
    assert clock.total_steps == 100 * 1251
    assert clock.steps(optimizer, 'warmup', path='optimizer') == 20 * 1251


def test_the_large_recipe_is_beit_v2s_after_300_epochs():
    run = load('finetune:vitl')
    assert (run.optimizer.layer_decay, run.optimizer.learning_rate) == (0.8, 5e-4)
    assert (run.model.drop_path, run.model.layer_scale, run.model.depth) == (0.2, 1e-5, 24)
    assert (run.train.total_epochs, run.optimizer.warmup_epochs) == (50.0, 5.0)
    assert load('finetune:vitb_384').data.image_size == (384, 384)


def test_the_documented_command_takes_a_plain_encoder():
    """docs/finetuning.md: one of MAE; without its changes it is refused."""
    text = (CONFIGS.parent / 'docs' / 'finetuning.md').read_text()
    command = re.search(r'--config.init.weights=runs/mae \\\n(.*?)\n\n', text, re.DOTALL).group(1)
    changes = config.assignments(shlex.split(command.replace('\\\n', ' ')))
    settings = config.load(f'{CONFIGS / "finetune.py"}:vitb')
    trained = load('mae:vitb')
    run = experiment.from_config(settings)
    with pytest.raises(UserError, match="qkv_bias is 'all' there, 'qv' in the config"):
        adapted_to(run.model, params_of(run)[1]['encoder'], trained)
    run = experiment.from_config(config.override(settings, experiment.Experiment, changes))
    adapted = adapted_to(run.model, params_of(run)[1]['encoder'], trained)
    assert not adapted.fresh and not run.optimizer.decay_also
    assert {name.split('/')[0] for name in adapted.left_out} == {'final_norm'}


def test_parameters_of_the_base_size_are_beits():
    """86.5 million, as BEiT v2 states of its fine-tuned base model."""
    _, params = params_of(load('finetune:vitb'))
    millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    assert millions == pytest.approx(86.5, abs=0.1)


@pytest.mark.parametrize('name', sets())
def test_every_transfer_builds(name):
    run = load(f'transfer:{name}')
    objective, params = params_of(run, classes=37)
    assert params['head']['linear']['kernel'].shape == (768, 37)
    assert objective.views(run.data)['images'].transforms
    dataset, split, eval_split, batch_size, epochs = sets()[name]
    assert (run.data.split, run.data.eval_split) == (split, eval_split)
    assert (run.data.batch_size, run.train.total_epochs) == (batch_size, epochs)
    if dataset:
        assert run.data.source.dataset == dataset
    else:
        assert run.data.source.path == name
    wanted = 5e-4 * batch_size / 1024
    assert run.optimizer.learning_rate * batch_size / run.optimizer.reference_batch == wanted


@pytest.mark.parametrize('name', [name for name, row in sets().items() if row[0]])
def test_tfds_knows_the_set_and_its_splits(name):
    """From TFDS's own code of each set: nothing is downloaded."""
    tfds = pytest.importorskip('tensorflow_datasets')
    dataset, split, eval_split, _, _ = sets()[name]
    builder = tfds.builder_cls(dataset)
    source = Path(sys.modules[builder.__module__].__file__).read_text()
    for part in f'{split}+{eval_split}'.split('+'):
        assert f"'{part}'" in source or f'"{part}"' in source or f'Split.{part.upper()}' in source


def test_an_argument_that_is_none_is_told():
    for spec in ('finetune:vitx', 'transfer:imagenet'):
        with pytest.raises(UserError, match='the argument is one of .*, not '):
            load(spec)
