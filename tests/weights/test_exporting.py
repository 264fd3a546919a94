"""What a file of ours must hold before it is written for others."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mim_jax.errors import UserError
from mim_jax.weights import exporting, native
from tests.fuzz.weights import encoder


def write(path, tensors, metadata):
    metadata = {'format': native.FORMAT, **metadata, 'digest': native.digest(tensors)}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


def test_a_whole_file_is_taken(tmp_path):
    tensors, metadata = encoder()
    read = exporting.of_file(write(tmp_path / 'w', tensors, metadata))
    assert native.flatten(read.params).keys() == tensors.keys()
    assert (read.channels, read.image_size, read.std) == (3, (8, 8), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda t: t.pop('final_norm/bias'), 'missing: final_norm/bias'),
        (lambda t: t.pop('patch_embed/kernel'), 'patch_embed/kernel is missing'),
        (lambda t: t.update(other=np.ones(3, np.float32)), 'unexpected: other'),
        (lambda t: t.update(class_token=np.ones(3, np.float32)), 'class_token .3,. instead of'),
        (lambda t: t.update(class_token=np.ones(16, np.int32)), 'class_token is of int32'),
        (lambda t: t.update(class_token=np.full(16, np.nan, np.float32)), 'not finite'),
        (
            lambda t: t.update({'class_token/x': np.ones(1, np.float32)}),
            'class_token is an array and has others inside',
        ),
    ],
)
def test_tensors_that_are_not_the_models_are_told(tmp_path, change, said):
    tensors, metadata = encoder()
    change(tensors)
    with pytest.raises(UserError, match=said):
        exporting.of_file(write(tmp_path / 'w', tensors, metadata))


@pytest.mark.parametrize(
    ('name', 'value', 'said'),
    [
        ('model', '{', 'model = { in its metadata is no JSON'),
        ('model', '[1, 2]', 'holds no fields'),
        ('model', json.dumps({'depth': 0}), 'model.depth = 0: must be at least 1'),
        ('model', json.dumps({'depth': 'two'}), "model.depth = 'two': expected int"),
        ('model', json.dumps({'depht': 2}), 'did you mean depth'),
        ('mean', '0.5, 0.5', 'is no JSON'),
        ('mean', '[0.5, 0.5]', 'mean has 2 numbers for 3 channels'),
        ('std', '[0, 1, 1]', 'must be above 0'),
        ('image_size', '[8, 8, 8]', 'is not .height, width.'),
    ],
)
def test_metadata_that_cannot_be_are_told(tmp_path, name, value, said):
    tensors, metadata = encoder()
    with pytest.raises(UserError, match=said):
        exporting.of_file(write(tmp_path / 'w', tensors, {**metadata, name: value}))
