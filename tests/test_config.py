"""Config sections, overrides, durations and what is said about mistakes."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim_jax import config as configs
from mim_jax import experiment
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / 'configs').glob('[!_]*.py'))


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float = 1.0

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f'radius = {self.radius} must be positive.')


@dataclasses.dataclass(frozen=True)
class Box:
    sides: tuple[float, ...] = (1.0, 2.0)
    closed: bool = True


SHAPES = {'circle': Circle, 'box': Box}


@dataclasses.dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (2, 3)
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 3
    rate: float = 0.5
    kind: Literal['a', 'b'] = 'a'
    inner: Inner = Inner()
    shape: object = choice(SHAPES, 'circle')
    total_steps: int | None = None
    total_epochs: float | None = 2.0


def section():
    return configs.written(Outer())


def built(section):
    return configs.build(Outer, section, path='outer')


def test_written_and_built_are_inverse():
    original = Outer(count=7, inner=Inner(label='x'), shape=Box(sides=(3.0,), closed=False))
    assert built(configs.written(original)) == original


@given(
    count=st.integers(-(10**9), 10**9),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    sides=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
)
def test_any_values_survive_writing(count, rate, sides):
    original = Outer(count=count, rate=rate, shape=Box(sides=tuple(sides)))
    assert built(configs.written(original)) == original


@pytest.mark.parametrize(
    ('path', 'text', 'value'),
    [
        ('count', '12', 12),
        ('rate', '1', 1.0),
        ('rate', '1e-3', 1e-3),
        ('kind', 'b', 'b'),
        ('inner.size', '(5,6)', (5, 6)),
        ('inner.size', '5,6', (5, 6)),
        ('inner.label', 'text', 'text'),
        ('inner.label', '12', '12'),
        ('inner.label', 'none', None),
    ],
)
def test_override_reads_text_as_the_fields_type(path, text, value):
    result = built(configs.override(section(), Outer, [(path, text)]))
    for part in path.split('.'):
        result = getattr(result, part)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ('path', 'text', 'said'),
    [
        ('cuont', '1', 'did you mean count?'),
        ('inner.siz', '1', 'did you mean size?'),
        ('count', 'many', 'expected int'),
        ('count', '1.5', 'expected int'),
        ('inner.size', '(1,2,3)', 'a tuple of int'),
        ('kind', 'c', "one of 'a', 'b'"),
        ('inner', '1', 'is a section'),
        ('count.more', '1', 'is a value, not a section'),
        ('shape.name', 'cirle', 'did you mean circle?'),
        ('shape.sides', '1', 'it is one of shape.name=box'),
    ],
)
def test_override_says_what_is_wrong(path, text, said):
    with pytest.raises(UserError, match='config') as error:
        configs.override(section(), Outer, [(path, text)])
    assert said in str(error.value)


def test_naming_another_option_brings_its_defaults():
    result = configs.override(section(), Outer, [('shape.closed', 'false'), ('shape.name', 'box')])
    assert built(result).shape == Box(closed=False)


def test_a_given_duration_replaces_the_files():
    result = built(configs.override(section(), Outer, [('total_steps', '5')]))
    assert (result.total_steps, result.total_epochs) == (5, None)


def test_two_given_durations_are_refused():
    with pytest.raises(UserError, match='both given'):
        configs.override(section(), Outer, [('total_steps', '5'), ('total_epochs', '1')])


def test_a_duration_may_be_emptied_beside_another():
    for order in (1, -1):
        given = [('total_steps', '5'), ('total_epochs', 'none')][::order]
        result = built(configs.override(section(), Outer, given))
        assert (result.total_steps, result.total_epochs) == (5, None)


def test_values_checked_by_the_dataclass_name_their_path():
    with pytest.raises(UserError, match=r'outer\.shape: radius = -1.0 must be positive'):
        built(configs.override(section(), Outer, [('shape.radius', '-1')]))


def test_clock_converts_every_unit():
    @dataclasses.dataclass
    class Durations:
        a_steps: int | None = None
        a_examples: int | None = None
        a_epochs: float | None = None
        a_percent: float | None = None

    clock = Clock(batch_size=32, epoch_examples=100, total_steps=200)
    assert clock.steps(Durations(), 'a', path='x') is None
    assert clock.steps(Durations(a_steps=7), 'a', path='x') == 7
    assert clock.steps(Durations(a_examples=65), 'a', path='x') == 3
    assert clock.steps(Durations(a_epochs=1.0), 'a', path='x') == 4
    assert clock.steps(Durations(a_percent=2.5), 'a', path='x') == 5
    with pytest.raises(UserError, match='both given'):
        clock.steps(Durations(a_steps=7, a_epochs=1.0), 'a', path='x')


def test_differences_name_nested_fields():
    old = {'a': 1, 'b': {'c': 2, 'd': 3}}
    new = {'a': 1, 'b': {'c': 5, 'd': 3, 'e': 4}}
    assert configs.differences(old, new) == ['b.c: 2 -> 5', 'b.e: None -> 4']


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_builds(path):
    config = configs.load(str(path))
    run = experiment.from_config(config)
    assert configs.written(run).to_dict() == config.to_dict()
    assert path.read_text().startswith('"""')
    assert f'--config=configs/{path.name}' in path.read_text()


def test_config_files_that_fail_are_told_in_one_sentence(tmp_path):
    file = tmp_path / 'broken.py'
    file.write_text(
        'from mim_jax.experiment import default_config\n'
        'def get_config():\n'
        "    config = default_config('mae')\n"
        '    config.data.batch_sise = 3\n'
        '    return config\n'
    )
    with pytest.raises(UserError, match='batch_sise'):
        configs.load(str(file))
    with pytest.raises(UserError, match='did you mean .*broken.py'):
        configs.load(str(tmp_path / 'brokn.py'))


def test_messages_name_the_field_from_the_top():
    for change, message in (
        ({'train': {'ema': {'end_decay': 1.0}}}, r'^config\.train\.ema: end_decay'),
        ({'train': {'accumulation': 'x'}}, r"^config\.train\.accumulation = 'x'"),
        ({'sead': 1}, r'^config\.sead'),
    ):
        with pytest.raises(UserError, match=message):
            configs.build(experiment.Experiment, change, path='')


def test_a_field_that_lives_in_a_section_is_found_there():
    from mim_jax.experiment import Experiment

    for path, place in (
        ('data.path', r'data\.source\.path \(of data\.source\.name=folder\)'),
        ('objective.beta', r'objective\.distance\.beta \(of objective\.distance\.name=smooth_l1\)'),
        ('data.scale', r'data\.crop\.scale'),
        ('mask_ratio', r'objective\.masking\.ratio'),
        ('target', r'objective\.target'),
    ):
        config = experiment.default_config('mae')
        with pytest.raises(UserError, match=rf'no such key; did you mean {place}\?'):
            configs.override(config, Experiment, [(path, '1')])


def test_a_field_of_another_option_is_said_to_be_that():
    config = experiment.default_config('mae')
    with pytest.raises(UserError, match='no such key here; it is one of data.source.name='):
        configs.override(config, experiment.Experiment, [('data.source.path', '/x')])
