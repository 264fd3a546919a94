"""`--help`: sections and fields of the config, from the dataclasses themselves."""

import dataclasses

import pytest

from mim_jax import config, experiment, main
from mim_jax import help as texts
from mim_jax.errors import UserError
from mim_jax.experiment import Experiment
from mim_jax.objectives import OBJECTIVES


def test_every_section_of_a_config_is_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main.parse(['--help'])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and '--workdir' in printed
    for field in dataclasses.fields(Experiment):
        assert f'\n  {field.name} ' in printed or field.name == 'seed'
    assert ' | '.join(sorted(OBJECTIVES)) in printed


@pytest.mark.parametrize('name', sorted(OBJECTIVES))
def test_every_field_of_an_objective_has_a_line(name):
    text = texts.section(Experiment, f'objective.{name}')
    lines = text.split(f'fields of objective.{name}:\n')[1].splitlines()
    fields = [field.name for field, _ in config.fields(OBJECTIVES[name])]
    assert [line.split()[0] for line in lines] == fields


def test_fields_have_kind_range_and_default():
    lines = texts.section(Experiment, 'optimizer').splitlines()
    assert '  beta1                    float, at least 0 and below 1; default 0.9' in lines
    assert '  warmup_steps             int or none, at least 0; default None' in lines
    assert any('layer_decay: below 1, a parameter' in line for line in lines)  # the docstring
    assert texts.section(Experiment, 'objective.dtm.masking').startswith('objective.dtm.masking is')
    assert 'num_masked' in texts.section(Experiment, 'objective.dtm.masking.block')


@pytest.mark.parametrize(
    ('path', 'said'),
    [('optimiser', 'the config has .*optimizer'), ('objective.dtn', 'objective has .*dtm'),
     ('mesh.data', 'mesh has no sections')],
)  # fmt: skip
def test_a_section_that_is_none(path, said):
    with pytest.raises(UserError, match=said):
        texts.section(Experiment, path)


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ('optimizer.lr', 'learning_rate'),
        ('model.num_heads', 'heads'),
        ('batch_size', 'data.batch_size'),
        ('train.batch_size', 'data.batch_size'),
        ('epochs', 'train.total_epochs'),
        ('optimizer.epochs', 'train.total_epochs'),
        ('train.lr', 'optimizer.learning_rate'),
        ('warmup_epochs', 'optimizer.warmup_epochs'),
        ('optimizer.warmup', 'warmup_epochs'),
        ('mask_ratio', 'objective.masking.ratio'),
        ('img_size', 'data.image_size'),
        ('model.img_size', 'data.image_size'),
        ('drop_path', 'model.drop_path'),
        ('ema_decay', 'train.ema.decay'),
        ('num_workers', 'data.workers'),
        ('data_path', 'data.source.path'),
        ('opt', 'optimizer.rule'),
        ('heads', 'model.heads'),
    ],
)
def test_names_of_other_code_bases_are_understood(given, meant):
    written = experiment.default_config('dtm')
    with pytest.raises(UserError, match=rf'did you mean {meant}( \(of .*\))?\?$'):
        config.override(written, Experiment, [(given, '1')])


def test_one_number_stands_for_all():
    written = experiment.default_config('simmim')
    changes = [('data.image_size', '96'), ('data.mean', '0.5'), ('model.patch_size', '8')]
    run = experiment.from_config(config.override(written, Experiment, changes))
    assert run.data.image_size == (96, 96) and run.data.mean == (0.5,) * 3
    assert run.model.patch_size == (8, 8)
