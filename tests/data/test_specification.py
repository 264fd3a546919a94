"""The one place that says what a batch is: against the batches themselves, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from mim_jax.data import (
    Colors,
    Crop,
    DataConfig,
    Field,
    batch_spec,
    check_views,
    eval_batches,
    eval_views,
    image_fields,
    make_source,
    train_batches,
)
from mim_jax.errors import UserError

CONFIG = DataConfig(image_size=(32, 40), batch_size=4, flip=0.5, threads=0)
MASK = Field('mask', 'map', dtype='uint8')
FIELDS = (*image_fields(10), MASK)
VIEWS = {
    'images': CONFIG.view(maps=('mask',)),
    'second': CONFIG.view(like='images', colors=Colors(brightness=0.4)),
    'small': CONFIG.view(image_size=(16, 16), boxes=True, flip=0.0),
}


def test_batches_are_what_the_specification_says():
    spec = batch_spec(CONFIG, VIEWS, FIELDS)
    assert {name: (array.shape, str(array.dtype)) for name, array in spec.items()} == {
        'images': ((4, 32, 40, 3), 'uint8'),
        'images_mask': ((4, 32, 40), 'uint8'),
        'small': ((4, 16, 16, 3), 'uint8'),
        'small_boxes': ((4, 4), 'float32'),
        'labels': ((4,), 'int32'),
    }
    source = make_source(CONFIG, split='train')
    batch = next(train_batches(source, CONFIG, seed=0, views=VIEWS))
    views = eval_views(CONFIG, VIEWS)
    tested = next(iter(eval_batches(source, CONFIG, batch_size=4, views=views)))
    assert tested.keys() - batch.keys() == {'index', 'valid'}
    for made in (batch, tested):
        for name, array in spec.items():
            assert (made[name].shape, made[name].dtype) == (array.shape, array.dtype)


def test_grey_images_and_values_of_any_shape():
    config = DataConfig(channels=1, mean=(0.5,), std=(0.5,), batch_size=2)
    fields = (
        Field('image', 'image'),
        Field('label', 'value', shape=(2,)),
        Field('angle', 'value', dtype='float32'),
    )
    spec = batch_spec(config, {'images': config.view()}, fields, batch_size=6)
    assert spec['images'].shape == (6, 48, 48, 1)
    assert spec['labels'].shape == (6, 2) and spec['labels'].dtype == np.int32
    assert spec['angles'].shape == (6,) and spec['angles'].dtype == np.float32


@pytest.mark.parametrize(
    ('views', 'said'),
    [
        ({'pair': CONFIG.view(of='other')}, "'pair'.*the image 'other', which the data does not"),
        ({'pair': CONFIG.view(of='mask')}, "image 'mask', which the data has as map, not as image"),
        ({'x': CONFIG.view(maps=('depth',))}, "map 'depth', which .* image .image., label .value."),
        (
            {'x': CONFIG.view(like='y')},
            "like 'y', which is no view with pixels of its own",
        ),
        ({'x': CONFIG.view(like='images', image_size=(16, 16))}, 'has its pixels'),
        ({'x': CONFIG.view(like='images', boxes=True)}, 'ask that one for maps, boxes'),
        ({'labels': CONFIG.view()}, "two parts of a batch are called 'labels'"),
        ({'images_mask': CONFIG.view()}, "two parts of a batch are called 'images_mask'"),
        ({'keys': CONFIG.view()}, "two parts of a batch are called 'keys'"),
    ],
)
def test_views_that_cannot_be_are_one_sentence(views, said):
    with pytest.raises(UserError, match=said):
        batch_spec(CONFIG, {'images': VIEWS['images'], **views}, FIELDS)


def test_a_field_cannot_take_the_random_keys_place():
    with pytest.raises(UserError, match="two parts of a batch are called 'keys'"):
        batch_spec(CONFIG, {'images': CONFIG.view()}, (*image_fields(), Field('key', 'value')))


def test_who_has_not_what_is_wanted_is_named():
    views = {'images': CONFIG.view(), 'pair': CONFIG.view(of='other')}
    with pytest.raises(UserError, match='which a set of files does not have'):
        check_views(CONFIG, views, image_fields(), data='a set of files')


def test_an_objective_must_see_images_of_the_models_size():
    for views in ({}, {'images': CONFIG.view(image_size=(16, 16))}):
        with pytest.raises(ValueError, match="'images'"):
            check_views(CONFIG, views, FIELDS)


@pytest.mark.parametrize(
    ('crop', 'eval_crop', 'share'),
    [
        (Crop(), None, 0.875),
        (Crop(), 0.5, 0.5),
        (Crop(mode='resize'), None, 1.0),
        (Crop(mode='centre', share=0.7), None, 0.7),
        (Crop(mode='simple', resize=256 / 224), None, 0.875),
        (Crop(mode='none'), 0.9, 0.9),
    ],
)
def test_evaluation_sees_the_centre_in_plain_colours(crop, eval_crop, share):
    config = dataclasses.replace(CONFIG, crop=crop, eval_crop=eval_crop, colors=Colors(hue=0.1))
    seen = eval_views(config, {'images': config.view(), 'second': config.view(like='images')})
    assert seen['images'].crop == dataclasses.replace(crop, mode='centre', share=share)
    assert seen['images'].colors == Colors() and seen['images'].flip == 0
    assert seen['second'].colors == config.colors and seen['second'].flip == 0


def test_without_cropping_evaluation_does_not_crop_either():
    config = dataclasses.replace(CONFIG, crop=Crop(mode='none'))
    assert eval_views(config, {'images': config.view()})['images'].crop.mode == 'none'
