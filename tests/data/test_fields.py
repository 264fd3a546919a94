"""What a source states of its items."""

import pytest

from mim_jax.data import Field, find, image_fields, num_classes
from mim_jax.data.fields import label_field


def test_the_number_of_classes_is_that_of_one_label():
    assert num_classes(image_fields(10)) == 10
    assert num_classes(image_fields()) is None
    image = Field('image', 'image')
    assert num_classes((image, Field('label', 'value', shape=(2,), num_classes=5))) is None
    assert num_classes((image, Field('style', 'value', num_classes=5))) is None
    assert num_classes((image, Field('label', 'value', dtype='float32'))) is None


def test_names():
    fields = image_fields(3)
    assert find(fields, 'label').plural == 'labels' and find(fields, 'mask') is None
    assert len({hash(fields), hash(image_fields(4))}) == 2
    named = (image_fields()[0], label_field(3, ['a', 'b', 'c']))
    assert find(named, 'label').names == ('a', 'b', 'c')
    assert named == fields and hash(named) == hash(fields)  # programs do not differ by them
    with pytest.raises(ValueError, match="kind is 'mask', must be one of image, map, value"):
        Field('mask', 'mask')
