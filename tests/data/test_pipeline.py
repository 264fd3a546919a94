"""Batches: order, reshuffling, processes, workers, resuming and corrupt images."""

import dataclasses
import json
import logging

import cv2
import numpy as np
import pytest

from mim_jax.data import Crop, DataConfig, Field, eval_batches, image_fields, train_batches
from mim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Source whose image i is a photo-like gradient around grey value i; some are corrupt."""

    length: int = 50
    bad: tuple = ()
    num_classes: int | None = 1000
    encoded: bool = False

    @property
    def fields(self):
        return image_fields(self.num_classes)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            return {'image': b'no image', 'label': index}
        ramp = np.arange(24)[:, None, None] + 2 * np.arange(20)[:, None] + np.zeros(3)
        image = (ramp + index).astype(np.uint8)
        if self.encoded:
            image = cv2.imencode('.jpg', image)[1].tobytes()
        item = {'image': image}
        if self.num_classes is not None:
            item['label'] = index
        return item

    def describe(self, index):
        return f'photo number {index}'


def config(**options):
    options = {'threads': 0, 'crop': Crop(scale=(0.3, 1.0))} | options
    return DataConfig(image_size=(12, 10), batch_size=8, **options)


def take(iterator, num):
    return [next(iterator) for _ in range(num)]


def labels_of(batches):
    return np.concatenate([batch['labels'] for batch in batches])


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_every_epoch_shows_every_image_once_in_a_new_order():
    source = Numbered(50)
    seen = labels_of(take(train_batches(source, config(), seed=0), 25)).reshape(4, 50)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
    assert len({tuple(epoch) for epoch in seen}) == 4
    # Seed and epoch are not interchangeable.
    other = labels_of(take(train_batches(source, config(), seed=1), 25)).reshape(4, 50)
    assert not {tuple(epoch) for epoch in seen} & {tuple(epoch) for epoch in other}


def test_batches_have_the_stated_shapes_and_types():
    batch = next(train_batches(Numbered(), config(), seed=0))
    assert batch.keys() == {'images', 'labels'}
    assert batch['images'].shape == (8, 12, 10, 3) and batch['images'].dtype == np.uint8
    assert batch['labels'].shape == (8,) and batch['labels'].dtype == np.int32
    assert next(train_batches(Numbered(num_classes=None), config(), seed=0)).keys() == {'images'}
    grey = config(channels=1, mean=(0.5,), std=(0.5,))
    assert next(train_batches(Numbered(encoded=True), grey, seed=0))['images'].shape[-1] == 1


def test_items_are_the_images_of_a_global_batch():
    batches = train_batches(Numbered(27), config(), seed=3, process_index=1, process_count=2)
    whole = take(train_batches(Numbered(27), config(), seed=3), 9)  # over two epochs' ends
    for position, batch in enumerate(whole):
        assert batches.items(position) == batch['labels'].tolist()


def test_without_shuffle_the_order_is_the_source():
    seen = labels_of(take(train_batches(Numbered(20), config(shuffle=False), seed=0), 5))
    np.testing.assert_array_equal(seen, np.tile(np.arange(20), 2))


def test_crops_differ_between_epochs_and_seeds_but_not_between_runs():
    source = Numbered(8)  # one batch is an epoch
    ordered = config(shuffle=False)
    first, second = take(train_batches(source, ordered, seed=0), 2)
    np.testing.assert_array_equal(first['labels'], second['labels'])
    assert not np.array_equal(first['images'], second['images'])
    assert_same([first, second], take(train_batches(source, ordered, seed=0), 2))
    other = next(train_batches(source, ordered, seed=1))
    assert not np.array_equal(first['images'], other['images'])


@pytest.mark.parametrize('block', [None, 4])
@pytest.mark.parametrize('count', [2, 4, 8])
def test_processes_together_make_the_one_process_batch(count, block):
    source, shuffled = Numbered(27), config(shuffle_block=block)
    whole = take(train_batches(source, shuffled, seed=3), 12)
    parts = [
        take(train_batches(source, shuffled, seed=3, process_index=i, process_count=count), 12)
        for i in range(count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


def test_threads_and_spawned_workers_change_nothing():
    source = Numbered(27, encoded=True, bad=(5,))
    expected = take(train_batches(source, config(), seed=3), 8)
    for options in ({'threads': 2, 'prefetch': 3}, {'workers': 2, 'threads': 1}):
        batches = train_batches(source, config(**options), seed=3)
        assert_same(expected[:6], take(batches, 6))
        state = batches.get_state()
        batches.close()
        assert batches.num_corrupt == 1
        # What another number of workers left off is continued.
        batches.set_state(state)
        assert_same(expected[6:], take(batches, 2))
        batches.close()


def test_errors_of_a_worker_reach_the_caller():
    fixed = config(crop=Crop(mode='none'), workers=1, threads=1)
    batches = train_batches(Numbered(), fixed, seed=0)
    with pytest.raises(UserError, match='24x20 pixels .*a view of it 12x10'):
        next(batches)
    batches.close()


@pytest.mark.parametrize('block', [None, 4])
@pytest.mark.parametrize('position', [0, 1, 5, 13])
def test_resuming_is_exact(position, block):
    source, shuffled = Numbered(27), config(shuffle_block=block)
    batches = train_batches(source, shuffled, seed=3)
    take(batches, position)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 4)
    fresh = train_batches(source, shuffled, seed=3)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_same(expected, take(fresh, 4))
    batches.set_state(state)  # back in the same iterator
    assert_same(expected, take(batches, 4))


def test_resuming_with_other_data_or_seed_is_refused():
    state = train_batches(Numbered(27), config(), seed=3).get_state()
    with pytest.raises(UserError, match='has 28 images, the run to resume had 27'):
        train_batches(Numbered(28), config(), seed=3).set_state(state)
    with pytest.raises(UserError, match='seed is 4, the run to resume had 3'):
        train_batches(Numbered(27), config(), seed=4).set_state(state)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_corrupt_images_are_replaced_counted_and_logged_once(caplog):
    source = Numbered(40, bad=(11, 12))
    batches = train_batches(source, config(shuffle=False), seed=0)
    with caplog.at_level(logging.WARNING, logger='absl'):
        seen = labels_of(take(batches, 15)).reshape(3, 40)
    expected = np.arange(40)
    expected[11:13] = 13  # the next good one
    np.testing.assert_array_equal(seen, np.tile(expected, (3, 1)))
    assert batches.num_corrupt == 2
    logged = warnings_of(caplog)
    assert len(logged) == 2
    assert all(f'photo number {i} (no readable image)' in logged[i - 11] for i in (11, 12))


@pytest.mark.parametrize('count', [1, 2])
def test_the_run_stops_when_too_many_images_are_corrupt(count):
    options = dict(seed=0, process_count=count)
    few, many = Numbered(200, bad=tuple(range(0, 200, 25))), Numbered(200, bad=tuple(range(50)))
    batches = train_batches(few, config(max_corrupt_share=0.06), **options)
    take(batches, 100)  # 4 % are corrupt
    with pytest.raises(UserError, match='200 images cannot be read.*max_corrupt_share.*photo num'):
        take(train_batches(many, config(max_corrupt_share=0.06), **options), 25)


def test_nothing_but_corrupt_images():
    source = Numbered(30, bad=tuple(range(30)))
    with pytest.raises(UserError, match='cannot be read'):
        next(train_batches(source, config(), seed=0))
    with pytest.raises(UserError, match='cannot be read'):
        list(eval_batches(source, config(), batch_size=8))


def test_impossible_batches():
    with pytest.raises(UserError, match='batch of 8 images does not divide over 3 processes'):
        train_batches(Numbered(), config(), seed=0, process_count=3)
    with pytest.raises(UserError, match='no images'):
        train_batches(Numbered(0), config(), seed=0)


@pytest.mark.parametrize('options', [{}, {'threads': 2}, {'workers': 2, 'threads': 1}])
def test_evaluation_shows_every_image_once_in_one_shape(options):
    source = Numbered(21, bad=(4,))
    batches = eval_batches(source, config(**options), batch_size=8)
    assert len(batches) == 3
    passes = [list(batches), list(batches)] if not options else [list(batches)] * 2
    assert_same(*passes)
    for batch in passes[0]:
        assert batch['images'].shape == (8, 12, 10, 3)
        assert batch['valid'].dtype == bool and batch['labels'].dtype == np.int32
    valid = np.concatenate([batch['valid'] for batch in passes[0]])
    index = np.concatenate([batch['index'] for batch in passes[0]])
    np.testing.assert_array_equal(index[valid], [i for i in range(21) if i != 4])
    np.testing.assert_array_equal(labels_of(passes[0])[valid], index[valid])
    np.testing.assert_array_equal(index[21:], -1)
    assert batches.num_corrupt == 1


@pytest.mark.parametrize('count', [2, 4])
def test_evaluation_is_shared_among_processes(count):
    source = Numbered(17)
    whole = list(eval_batches(source, config(), batch_size=8))
    parts = [
        list(eval_batches(source, config(), batch_size=8, process_index=i, process_count=count))
        for i in range(count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


def test_the_evaluation_view_is_the_centre():
    """12x10 of 24x20 with share 1/2 is the middle, pixel by pixel."""
    batch = next(iter(eval_batches(Numbered(), config(eval_crop=0.5), batch_size=8)))
    for i in range(8):
        np.testing.assert_array_equal(batch['images'][i], Numbered()[i]['image'][6:18, 5:15])


VIEWS = {
    'second': config().view(crop=Crop(scale=(0.1, 0.3))),
    'small': config().view(image_size=(6, 6), boxes=True),
    'same': config().view(like='images'),
}


@pytest.mark.parametrize('names', [('second',), ('small', 'same'), ('same', 'small', 'second')])
def test_a_view_draws_the_same_whatever_others_there_are(names):
    source, views = Numbered(20, encoded=True, bad=(3,)), {'images': config().view()}
    alone = take(train_batches(source, config(), seed=1), 4)
    every = take(train_batches(source, config(), seed=1, views=views | VIEWS), 4)
    some = {name: VIEWS[name] for name in names}
    # Whatever their order, too.
    found = take(train_batches(source, config(), seed=1, views=some | views), 4)
    for one, all_of_them, batch in zip(alone, every, found, strict=True):
        expected = {k: v for k, v in all_of_them.items() if k in batch}
        assert batch.keys() >= one.keys() and 'same' not in batch
        assert_same([expected, one], [batch, {k: batch[k] for k in one}])
    assert not np.array_equal(every[0]['images'], every[0]['second'])


def test_views_of_the_evaluation_are_the_same_at_every_pass():
    views = {'images': config().view(), 'second': VIEWS['second']}
    batches = eval_batches(Numbered(21), config(), batch_size=8, views=views)
    assert_same(list(batches), list(batches))
    first, again = next(iter(batches)), list(batches)[1]
    assert not np.array_equal(first['second'], again['second'])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Item i: an image of i, one of 100 + i, two labels, a depth and a map of i."""

    fields: tuple = (
        Field('image', 'image'),
        Field('other', 'image'),
        Field('label', 'value', shape=(2,)),
        Field('depth', 'value', dtype='float32'),
        Field('map', 'map', dtype='uint8'),
    )
    depth: object = 0.5

    def __len__(self):
        return 10

    def __getitem__(self, index):
        flat = np.full((12, 10), index, np.uint8)
        return {
            'image': flat,
            'other': flat + np.uint8(100),
            'label': [index, 2 * index],
            'depth': self.depth,
            'map': flat,
        }

    def describe(self, index):
        return f'pair {index}'


def test_pairs_labels_and_maps_come_as_their_fields_say():
    views = {'images': config().view(maps=('map',)), 'pair': config().view(of='other')}
    batch = next(train_batches(Pairs(), config(), seed=0, views=views))
    assert batch['labels'].shape == (8, 2) and batch['labels'].dtype == np.int32
    index = batch['labels'][:, 0]
    np.testing.assert_array_equal(batch['labels'][:, 1], 2 * index)
    np.testing.assert_array_equal(batch['images'][:, 3, 4, 0], index)
    np.testing.assert_array_equal(batch['pair'][:, 3, 4, 0], index + 100)
    np.testing.assert_array_equal(batch['images_map'][:, 3, 4], index)
    assert batch['depths'].dtype == np.float32 and (batch['depths'] == 0.5).all()


def test_a_source_that_breaks_its_word_is_named():
    with pytest.raises(ValueError, match=r'depths of pair \d has the shape \(3,\), .* \(\)'):
        next(train_batches(Pairs(depth=np.zeros(3)), config(), seed=0))


def to_grey(rng, shown):
    """A host transform: the mean colour plus a draw."""
    mean = np.full_like(shown.image, shown.image.mean()) + np.uint8(rng.integers(9))
    return dataclasses.replace(shown, image=mean)


def test_host_transforms_run_in_workers_too():
    views = {'images': config().view(transforms=(to_grey,))}
    expected = take(train_batches(Numbered(20), config(shuffle_block=4), seed=1, views=views), 2)
    assert all(np.ptp(image) == 0 for image in expected[0]['images'])
    workers = config(shuffle_block=4, workers=1, threads=1)
    batches = train_batches(Numbered(20), workers, seed=1, views=views)
    assert_same(expected, take(batches, 2))
    batches.close()


@pytest.mark.parametrize('batches', [train_batches, eval_batches])
def test_a_label_that_is_no_class_is_told(batches):
    """As -1 is, in test splits whose labels are kept back."""
    source = Numbered(20, num_classes=10)
    options = {'seed': 0} if batches is train_batches else {'batch_size': 20}
    settings = config(shuffle=False)
    with pytest.raises(UserError, match='photo number 1[0-9] has the label 1[0-9], .*10 classes 0'):
        take(iter(batches(source, settings, **options)), 3)
