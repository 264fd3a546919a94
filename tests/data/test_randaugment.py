"""RandAugment: strengths against timm's table, what is picked how often, its place in a view."""

import dataclasses
import pickle

import numpy as np
import pytest
from scipy import stats

from mim_jax import config as configs
from mim_jax.data import DataConfig, eval_views, image_fields, operations, train_batches
from mim_jax.data.picture import Picture
from mim_jax.data.randaugment import RandAugment
from mim_jax.data.specification import check_views
from mim_jax.errors import UserError

FILL = (124, 116, 104)
PUBLISHED = RandAugment(num_ops=2, fill=FILL)  # rand-m9-n2-mstd0.5-inc1

# timm's definitions: the argument at magnitudes 0, 5, 9 and 10; of those in SIGNED half have the
# other sign, of the factors half are mirrored at 1 (and at least 0.1).
INCREASING = {
    'auto_contrast': (None, None, None, None),
    'equalize': (None, None, None, None),
    'invert': (None, None, None, None),
    'rotate': (0.0, 15.0, 27.0, 30.0),
    'posterize': (4, 2, 1, 0),
    'solarize': (256, 128, 26, 0),
    'solarize_add': (0, 55, 99, 110),
    'color': (1.0, 1.45, 1.81, 1.9),
    'contrast': (1.0, 1.45, 1.81, 1.9),
    'brightness': (1.0, 1.45, 1.81, 1.9),
    'sharpness': (1.0, 1.45, 1.81, 1.9),
    'shear_x': (0.0, 0.15, 0.27, 0.3),
    'shear_y': (0.0, 0.15, 0.27, 0.3),
    'translate_x': (0.0, 0.225, 0.405, 0.45),
    'translate_y': (0.0, 0.225, 0.405, 0.45),
}
OTHERWISE = {
    'posterize': (0, 2, 3, 4),
    'solarize': (0, 128, 230, 256),
    'color': (0.1, 1.0, 1.72, 1.9),
    'contrast': (0.1, 1.0, 1.72, 1.9),
    'brightness': (0.1, 1.0, 1.72, 1.9),
    'sharpness': (0.1, 1.0, 1.72, 1.9),
}
SIGNED = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
MIRRORED = ('color', 'contrast', 'brightness', 'sharpness')


def drawn(augment, count, seed=0):
    """What happens to so many pictures: a list of (name of the operation, argument, where)."""
    rng = np.random.default_rng(seed)
    pictures = [augment.drawn(rng) for _ in range(count)]
    return [[(operation.__name__, *rest) for operation, *rest in one] for one in pictures]


@pytest.mark.parametrize('increasing', [True, False])
@pytest.mark.parametrize(('place', 'magnitude'), [(0, 0.0), (1, 5.0), (2, 9.0), (3, 10.0)])
def test_arguments_are_timms(increasing, place, magnitude):
    augment = dataclasses.replace(
        PUBLISHED,
        num_ops=1,
        magnitude=magnitude,
        magnitude_std=0.0,
        probability=1.0,
        increasing=increasing,
    )
    table = INCREASING if increasing else INCREASING | OTHERWISE
    found = {name: [] for name in table}
    for ((name, argument, _),) in drawn(augment, 1500):
        found[name].append(argument)
    for name, arguments in found.items():
        wanted = table[name][place]
        both = {wanted}
        if name in SIGNED:
            both = {-wanted, wanted}
        elif name in MIRRORED and increasing:
            both = {max(0.1, 2 - wanted), wanted}
        if wanted is None or isinstance(wanted, int):
            assert set(arguments) == both
        else:
            assert len(set(arguments)) == len(both)
            np.testing.assert_allclose(sorted(set(arguments)), sorted(both), atol=1e-9)
        if len(both) == 2:
            share = np.mean(np.isclose(arguments, wanted))
            assert stats.binomtest(round(share * len(arguments)), len(arguments)).pvalue > 1e-4


def test_every_operation_is_picked_alike_each_time_from_all_and_happens_by_chance():
    pictures = drawn(dataclasses.replace(PUBLISHED, probability=1.0), 6000)
    firsts, seconds = zip(*[[step[0] for step in one] for one in pictures], strict=True)
    names = sorted(INCREASING)
    table = np.zeros((15, 15))
    for first, second in zip(firsts, seconds, strict=True):
        table[names.index(first), names.index(second)] += 1
    assert stats.chisquare(table.ravel()).pvalue > 1e-4  # every ordered pair, equal ones too
    counts = np.bincount([len(one) for one in drawn(PUBLISHED, 4000)], minlength=3)
    assert stats.chisquare(counts, [1000, 2000, 1000]).pvalue > 1e-4


def test_magnitudes_are_normal_and_cut():
    augment = dataclasses.replace(PUBLISHED, num_ops=1, probability=1.0)
    degrees = [abs(a) for ((name, a, _),) in drawn(augment, 40000) if name == 'rotate']
    magnitudes = np.array(degrees) / 3
    assert magnitudes.max() == 10.0
    whole = stats.norm(9, 0.5)
    np.testing.assert_allclose((magnitudes == 10.0).mean(), whole.sf(10), atol=0.012)
    below = magnitudes[magnitudes < 10.0]
    assert stats.kstest(below, lambda x: whole.cdf(x) / whole.cdf(10)).pvalue > 1e-3
    low = dataclasses.replace(augment, magnitude=0.2)
    degrees = [abs(a) for ((name, a, _),) in drawn(low, 4000) if name == 'rotate']
    assert min(degrees) == 0.0


def test_interpolation_and_fill():
    augment = dataclasses.replace(PUBLISHED, interpolation='random', probability=1.0)
    where = [step[2] for one in drawn(augment, 2000) for step in one]
    assert {w.fill for w in where} == {FILL}
    bicubic = sum(w.interpolation == 'bicubic' for w in where)
    assert stats.binomtest(bicubic, len(where)).pvalue > 1e-4
    assert {w.interpolation for w in where} == {'bicubic', 'bilinear'}
    where = [step[2] for one in drawn(PUBLISHED, 200) for step in one]
    assert {w.interpolation for w in where} == {'bicubic'}


def test_operations_follow_one_another():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    augment = dataclasses.replace(PUBLISHED, num_ops=3, probability=1.0)
    expected = image
    for operation, argument, where in augment.drawn(np.random.default_rng(5)):
        expected = operation(expected, argument, where)
    picture = Picture(image=image, maps={}, box=(0, 0, 1, 1))
    found = pickle.loads(pickle.dumps(augment))(np.random.default_rng(5), picture)
    np.testing.assert_array_equal(found.image, expected)
    assert found.box == picture.box and not np.array_equal(found.image, image)


def data(**randaugment):
    return DataConfig(
        image_size=(32, 32),
        batch_size=8,
        randaugment=RandAugment(**{'num_ops': 2, 'probability': 1.0} | randaugment),
    )


def test_views_have_it_with_the_mean_as_fill_and_evaluation_has_not():
    config = data()
    view = config.view(transforms=(len,))
    augment, own = view.transforms
    assert isinstance(augment, RandAugment) and augment.fill == FILL and own is len
    assert config.view(like='images').transforms == ()
    assert DataConfig().view(transforms=(len,)).transforms == (len,)
    assert eval_views(config, {'images': config.view()})['images'].transforms == ()
    check_views(config, {'images': config.view()}, image_fields(10))
    grey = DataConfig(channels=1, mean=(0.5,), std=(0.5,), randaugment=RandAugment(num_ops=1))
    assert grey.view().transforms[0].fill == (128,)


def test_maps_and_boxes_are_refused():
    for changes, said in (({'maps': ('mask',)}, 'mask'), ({'boxes': True}, 'the boxes')):
        with pytest.raises(UserError, match=f'moves the image, and {said} of its view would not'):
            data().view(**changes)
    picture = Picture(
        image=np.zeros((4, 4, 3), np.uint8), maps={'map': np.zeros((4, 4), int)}, box=(0, 0, 1, 1)
    )
    with pytest.raises(UserError, match='and map of its view would not follow'):
        PUBLISHED(np.random.default_rng(0), picture)


def batches(config, count=3, **views):
    source = config.source.open(config, split='train')
    views = {'images': config.view(), **views}
    iterator = train_batches(source, config, seed=0, views=views)
    return [next(iterator) for _ in range(count)]


def test_a_run_draws_by_seed_epoch_image_and_view():
    config = data()
    config = dataclasses.replace(
        config, source=dataclasses.replace(config.source, num_train=8), shuffle=False
    )
    config = dataclasses.replace(config, crop=dataclasses.replace(config.crop, mode='resize'))
    plain = dataclasses.replace(config, randaugment=RandAugment())
    first, second, third = (b['images'] for b in batches(config))
    (clean,) = (b['images'] for b in batches(plain, count=1))
    changed = [not np.array_equal(a, b) for a, b in zip(first, clean, strict=True)]
    assert sum(changed) >= 6  # an operation may leave a picture as it was
    assert not np.array_equal(first, second) and not np.array_equal(second, third)  # epochs
    threads = dataclasses.replace(config, threads=1, prefetch=1)
    for mine, theirs in zip(batches(config), batches(threads), strict=True):
        np.testing.assert_array_equal(mine['images'], theirs['images'])
    both = batches(config, count=1, second=config.view())[0]
    np.testing.assert_array_equal(both['images'], first)
    assert not np.array_equal(both['second'], first)


def test_the_section_is_written_and_checked():
    section = configs.written(DataConfig())
    assert section.randaugment.num_ops == 0 and 'fill' not in section.randaugment
    section.randaugment.num_ops = 2
    assert configs.build(DataConfig, section, path='data') == DataConfig(
        randaugment=RandAugment(num_ops=2)
    )


@pytest.mark.parametrize('name', INCREASING)
def test_no_operation_changes_its_input(name):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    before = image.copy()
    where = operations.Resampling('bicubic', FILL)
    found = getattr(operations, name)(image, INCREASING[name][2], where)
    np.testing.assert_array_equal(image, before)
    assert found.flags.writeable and not np.shares_memory(found, image)
