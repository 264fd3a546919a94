"""What a source states of its items."""

import pytest

from mim_jax.data import Field, find, image_fields, num_classes


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
    with pytest.raises(ValueError, match="kind is 'mask', must be one of image, map, value"):
        Field('mask', 'mask')
