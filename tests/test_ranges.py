"""Ranges of config fields: what is in them, and what is said of what is not."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim_jax import config, experiment
from mim_jax.errors import UserError
from mim_jax.ranges import Count, Fraction, Percent, Positive, Range

BOUNDS = st.none() | st.integers(-3, 3)


@given(BOUNDS, BOUNDS, st.booleans(), st.booleans(), st.integers(-4, 4))
def test_what_lies_between_the_bounds(low, high, low_open, high_open, value):
    inside = True
    if low is not None:
        inside &= value > low if low_open else value >= low
    if high is not None:
        inside &= value < high if high_open else value <= high
    assert (value in Range(low, high, low_open, high_open)) == inside


def test_a_range_in_words():
    assert str(Range(1)) == 'at least 1'
    assert str(Range(0, 1, high_open=True)) == 'at least 0 and below 1'
    assert str(Range(0, None, low_open=True)) == 'above 0'
    assert str(Range(None, 100)) == 'at most 100'


@dataclasses.dataclass(frozen=True)
class Section:
    count: Count = 1
    sides: tuple[Count, ...] = (2, 2)
    rate: Positive | None = None
    decay: Fraction = 0.5
    percent: Percent | None = None
    free: float = 0.0


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('count=0', 'config.s.count=0: must be at least 1'),
        ('count=3000000000', 'must be at least 1 and at most'),
        ('count=1.5', 'expected int'),
        ('sides=(4,0)', r'config.s.sides=\(4,0\): must be at least 1'),
        ('rate=0', 'must be above 0'),
        ('rate=-1', 'must be above 0'),
        ('decay=1', 'must be at least 0 and below 1'),
        ('percent=200', 'must be at least 0 and at most 100'),
        ('free=1e999', 'must be a finite number'),
        ('free=word', 'expected float'),
    ],
)
def test_the_command_line_is_told(text, said):
    @dataclasses.dataclass(frozen=True)
    class Config:
        s: Section = dataclasses.field(default_factory=Section)

    Config.__annotations__['s'] = Section
    written = config.written(Config())
    name, _, value = text.partition('=')
    with pytest.raises(UserError, match=said):
        config.override(written, Config, [(f's.{name}', value)])


def test_a_config_file_is_told_and_what_fits_is_taken():
    section = config.written(Section())
    assert config.build(Section, section, path='s') == Section()
    for name, value in {'count': 0, 'sides': (0, 1), 'free': float('nan')}.items():
        wrong = {**section, name: value}
        with pytest.raises(UserError, match=f'config.s.{name} = .*must be'):
            config.build(Section, wrong, path='s')
    assert config.build(Section, {**section, 'rate': 2, 'decay': 0}, path='s').rate == 2.0


@pytest.mark.parametrize(
    'assignment',
    [
        'model.patch_size=(0,0)',
        'model.heads=0',
        'model.depth=0',
        'model.grid=(-1,4)',
        'model.mlp_ratio=0',
        'seed=-1',
        'train.total_steps=-5',
        'train.total_epochs=1e300',
        'eval.batch_size=0',
        'eval.batch_size=1000000000000',
        'eval.every_percent=200',
        'optimizer.beta1=2',
        'optimizer.beta2=-0.5',
        'optimizer.weight_decay=-1',
        'optimizer.end_learning_rate=-1',
        'optimizer.layer_decay=-1',
        'optimizer.warmup_percent=200',
        'optimizer.warmup_epochs=-1',
        'checkpoint.every_steps=-1',
        'log.pictures_every_percent=101',
    ],
)
def test_what_makes_no_sense_in_a_run(assignment):
    written = experiment.default_config('simmim')
    name, _, value = assignment.partition('=')
    with pytest.raises(UserError, match=rf'config.{name}=.*: must be (at least|at most|above) '):
        config.override(written, experiment.Experiment, [(name, value)])


@pytest.mark.parametrize(
    ('body', 'said'),
    [
        ('1 / 0', 'cannot be run: division by zero'),
        ('import no_such_module', 'cannot be run: No module named'),
        ('def get_config():\n    raise RuntimeError("no luck")', 'get_config.. failed: no luck'),
        ('def get_config():\n    pass', 'must return a config .* not NoneType'),
        ('def get_config(', 'cannot be run: '),
    ],
)
def test_a_config_file_that_fails(tmp_path, body, said):
    path = tmp_path / 'broken.py'
    path.write_text(body)
    with pytest.raises(UserError, match=said) as told:
        config.load(str(path))
    assert len(str(told.value).splitlines()) == 1
