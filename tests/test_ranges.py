"""Ranges of config fields: what is in them, and what is said of what is not."""

import dataclasses
import typing

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
    'assignments',
    [
        'model.patch_size=(0,0)',
        'model.heads=0',
        'model.depth=0',
        'model.depth=100000',
        'model.grid=(-1,4)',
        'model.mlp_ratio=0',
        'model.drop_path=1',
        'seed=-1',
        'train.total_steps=-5',
        'train.total_epochs=1e300',
        'train.accumulation=0',
        'train.ema.decay=1.5',
        'data.image_size=0',
        'data.image_size=1000000',
        'data.std=0,1,1',
        'data.batch_size=0',
        'data.flip=1.5',
        'data.eval_crop=0',
        'data.max_corrupt_share=2',
        'data.workers=-2',
        'data.workers=1000000',
        'data.crop.scale=0,1',
        'data.crop.resize=0.9',
        'data.crop.pad=-1',
        'data.crop.longest=0.5',
        'data.crop.max_share=0',
        'data.crop.share=0',
        'data.colors.contrast=-0.1',
        'data.colors.hue=0.6',
        'data.colors.probability=1.1',
        'data.colors.blur=-1',
        'data.randaugment.num_ops=-1',
        'data.randaugment.magnitude=11',
        'data.source.num_train=0',
        'eval.batch_size=0',
        'eval.batch_size=1000000000000',
        'eval.every_percent=200',
        'eval.knn.k=0',
        'eval.knn.k=20,0',
        'eval.knn.temperature=0',
        'eval.linear.holdout=1',
        'eval.linear.seed=-1',
        'eval.fewshot.draws=0',
        'eval.augmented.views=1',
        'eval.accuracy.max_test=0',
        'eval.segmentation.stride=0',
        'eval.segmentation.scales=0',
        'optimizer.learning_rate=-1',
        'optimizer.horizon=0.5',
        'optimizer.momentum=-1',
        'optimizer.trust=0',
        'optimizer.clip_norm=0',
        'optimizer.beta1=2',
        'optimizer.beta2=-0.5',
        'optimizer.weight_decay=-1',
        'optimizer.end_learning_rate=-1',
        'optimizer.layer_decay=-1',
        'optimizer.layer_decay=1.5',
        'optimizer.warmup_percent=200',
        'optimizer.warmup_epochs=-1',
        'mesh.tensor=-2',
        'init.step=-1',
        'checkpoint.every_steps=-1',
        'checkpoint.every_minutes=0',
        'checkpoint.keep=0',
        'log.every_steps=0',
        'log.num_pictures=0',
        'log.pictures_every_percent=101',
        'objective.masking.name=random objective.masking.ratio=1',
        'objective.masking.name=random objective.masking.ratio=0',
        'objective.masking.cell=0,2',
        'objective.masking.name=block objective.masking.num_masked=0',
        'objective.masking.name=block objective.masking.min_aspect=0',
        'objective.target.name=hog objective.target.bins=0',
        'objective.target.name=hog objective.target.eps=0',
        'objective.name=dtm objective.morphing.max_merged=-1',
        'objective.name=dtm objective.morphing.num_draws=0',
        'objective.name=dtm objective.morphing.grouping.name=superpixels '
        'objective.morphing.grouping.compactness=0',
        'objective.name=dtm objective.distance.name=smooth_l1 objective.distance.beta=0',
        'objective.name=mae objective.decoder.depth=-1',
        'objective.name=mfm objective.distance.gamma=0',
        'objective.name=mfm objective.corruption.radius=0',
        'objective.name=mfm objective.corruption.low_share=1.5',
        'objective.name=mfm objective.corruption.name=low_resolution objective.corruption.factor=1',
        'optimizer.end_weight_decay=-1',
        'objective.name=ijepa objective.masking.num_context=0',
        'objective.name=ijepa objective.masking.target_scale=0,0.2',
        'objective.name=ijepa objective.masking.target_aspect=-1,1',
        'objective.name=dmtjepa objective.neighbours=0',
        'objective.name=salt objective.masking.long.scale=1.5',
        'objective.name=hpm objective.end_share=1.5',
        'objective.name=hpm objective.stage_epochs=-1',
        'objective.name=lut objective.hidden=0',
        'objective.name=byol objective.token_weight=-1',
        'objective.name=maskalign objective.levels=0',
        'objective.name=vqkd objective.quantizer.decay=1',
        'objective.name=vqkd objective.quantizer.num_codes=0',
        'objective.name=beitv2 objective.branch_depth=-1',
        'objective.name=classification objective.label_smoothing=1',
        'objective.name=classification objective.mixup=-1',
        'objective.name=segmentation objective.head.dropout=1',
        'objective.name=segmentation objective.head.auxiliary_weight=-1',
        'objective.name=segmentation objective.distortion.hue=91',
    ],
)
def test_what_makes_no_sense_in_a_run(assignments):
    """Written down field by field, from what the numbers mean, and not from the declared ranges."""
    written = experiment.default_config('simmim')
    *choices, last = [tuple(pair.split('=')) for pair in assignments.split()]
    config.override(written, experiment.Experiment, choices)
    with pytest.raises(UserError, match=rf'config.{last[0]}=.*: must be (at least|at most|above) '):
        config.override(written, experiment.Experiment, [last])


def sections(cls, path=''):
    """(path, dataclass) of every section of a config, each option of a choice being one."""
    yield path, cls
    for field, kind in config.fields(cls):
        options = field.metadata.get('options', {'': kind})
        for name, inner in options.items():
            if dataclasses.is_dataclass(inner):
                yield from sections(inner, '.'.join(filter(None, (path, field.name, name))))


def numbers(kind):
    """The kinds of number, without their range, that are left in a kind once what has a range is
    taken away.
    """
    if typing.get_origin(kind) is typing.Annotated:
        return set()
    if kind in (int, float):
        return {kind}
    return {n for inner in typing.get_args(kind) if inner is not ... for n in numbers(inner)}


def test_every_number_of_every_section_has_a_range():
    found = dict(sections(experiment.Experiment))
    assert len(found) > 60
    without = [
        f'{path}.{field.name}'
        for path, cls in found.items()
        for field, kind in config.fields(cls)
        if numbers(kind) and not dataclasses.is_dataclass(kind)
    ]
    assert not without


@dataclasses.dataclass(frozen=True)
class Bare:
    one: int = 0
    many: tuple[float, ...] = ()
    some: int | tuple[Count, ...] | None = None
    ranged: tuple[Count, ...] | None = None
    text: str | None = None


def test_a_number_without_a_range_would_be_found():
    bare = [field.name for field, kind in config.fields(Bare) if numbers(kind)]
    assert bare == ['one', 'many', 'some']


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
