"""Weight files: whole or absent, and clear about what is wrong."""

import json

import numpy as np
import pytest
import safetensors.numpy

from mim_jax.errors import UserError
from mim_jax.folders import new_folder
from mim_jax.models import ViT
from mim_jax.weights import encoders, fitting, native

PARAMS = {
    'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'bias': np.ones(3, np.float32)},
    'b': np.float32(0.1) * np.ones((2, 2), np.float32),
}


def test_save_and_load(tmp_path):
    file = tmp_path / 'deep' / 'w.safetensors'
    native.save(file, PARAMS, metadata={'note': 'x'})
    params, metadata = native.load(file)
    assert len(metadata.pop('digest')) == 32
    assert metadata == {'format': 'mim_jax', 'note': 'x'}
    assert native.flatten(params).keys() == {'a/kernel', 'a/bias', 'b'}
    np.testing.assert_array_equal(params['a']['kernel'], PARAMS['a']['kernel'])
    assert safetensors.numpy.load_file(file).keys() == {'a/kernel', 'a/bias', 'b'}
    assert [p.name for p in file.parent.iterdir()] == ['w.safetensors']


def test_half_precision_storage(tmp_path):
    native.save(tmp_path / 'w', PARAMS, dtype='float16')
    assert safetensors.numpy.load_file(tmp_path / 'w')['b'].dtype == np.float16
    b = native.load(tmp_path / 'w')[0]['b']
    assert b.dtype == np.float32
    np.testing.assert_array_equal(b, PARAMS['b'].astype(np.float16).astype(np.float32))
    with pytest.raises(UserError, match='big has values beyond float16'):
        native.save(tmp_path / 'v', {'big': np.float32([1e6])}, dtype='float16')
    assert not (tmp_path / 'v').exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    native.save(tmp_path / 'w', PARAMS)
    before = (tmp_path / 'w').read_bytes()

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        native.save(tmp_path / 'w', {'other': np.zeros(2, np.float32)})
    assert [p.name for p in tmp_path.iterdir()] == ['w']
    assert (tmp_path / 'w').read_bytes() == before


def test_damage_of_any_tensor_is_noticed(tmp_path):
    file = tmp_path / 'w'
    native.save(file, PARAMS)
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], 'little')
    assert len(content) - start == 4 * (6 + 3 + 4)
    for place in range(start, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(UserError, match='w is damaged'):
            native.load(file)
    file.write_bytes(content)
    native.load(file)
    # Files of before there were digests, and of other writers, have none.
    tensors = native.flatten(PARAMS)
    safetensors.numpy.save_file(tensors, file, metadata={'format': 'mim_jax'})
    assert native.load(file)[0].keys() == PARAMS.keys()


def test_values_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    wrong = {'a': {'kernel': np.float32([1, np.nan])}}
    with pytest.raises(UserError, match='a/kernel has values that are not finite'):
        native.save(tmp_path / 'w', wrong)
    assert not list(tmp_path.iterdir())
    metadata = {'format': 'mim_jax'}
    safetensors.numpy.save_file(native.flatten(wrong), tmp_path / 'w', metadata=metadata)
    with pytest.raises(UserError, match='weights file .*w: a/kernel has values'):
        native.load(tmp_path / 'w')


def test_only_a_weight_file_of_ours_is_replaced(tmp_path):
    native.save(tmp_path / 'w', PARAMS)
    native.save(tmp_path / 'w', {'b': PARAMS['b']})
    assert native.load(tmp_path / 'w')[0].keys() == {'b'}
    (tmp_path / 'thesis').write_text('all of it')
    safetensors.numpy.save_file({'x': PARAMS['b']}, tmp_path / 'theirs')
    for name in ('thesis', 'theirs'):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f'{name} exists already and is no weight file'):
            native.save(tmp_path / name, PARAMS)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize('write', [native.save, lambda out, _: new_folder(out).__enter__()])
def test_a_file_cannot_be_a_folder(write, tmp_path):
    (tmp_path / 'a.txt').write_text('kept')
    for out in ('a.txt/x.safetensors', 'a.txt/deep/x.safetensors'):
        with pytest.raises(
            UserError, match=r'nothing can be written in .*a\.txt is not a directory'
        ):
            write(tmp_path / out, PARAMS)
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / 'out').mkdir()
    with pytest.raises(UserError, match='out is a directory: name a file'):
        native.save(tmp_path / 'out', PARAMS)
    assert [p.name for p in tmp_path.iterdir()] == ['out'] and not [*(tmp_path / 'out').iterdir()]


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    native.save(tmp_path / 'w', PARAMS)
    whole = (tmp_path / 'w').read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / 'cut').write_bytes(whole[:cut])
        for read in (native.load, native.read_header):
            with pytest.raises(UserError, match='cut cannot be read as safetensors'):
                read(tmp_path / 'cut')
    with pytest.raises(UserError, match='nowhere does not exist'):
        native.load(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='is a directory, not a file'):
        native.load(tmp_path)
    safetensors.numpy.save_file({'conv1.weight': np.zeros(2, np.float32)}, tmp_path / 'foreign')
    with pytest.raises(UserError, match='not in mim_jax naming .*conv1.weight'):
        native.load(tmp_path / 'foreign')


def test_an_encoders_file_says_what_model_it_is(tmp_path):
    model = ViT(width=24, heads=3, patch_size=(4, 8))
    native.save(tmp_path / 'w', PARAMS, metadata=native.encoder_metadata(model))
    stated, params = encoders.load_encoder(tmp_path / 'w')
    assert stated['width'] == 24 and stated['patch_size'] == [4, 8]
    assert params.keys() == {'a', 'b'}


def test_fields_that_make_no_model_are_one_sentence():
    fields = json.loads(native.encoder_metadata(ViT(width=24, heads=3, grid=(2, 3)))['model'])
    assert native.model_of(fields, what='file') == ViT(width=24, heads=3, grid=(2, 3))
    for wrong, told in (({'hats': 2}, 'hats'), ({'heads': 7}, 'divisible by heads 7')):
        with pytest.raises(UserError, match=f'^file: its model fields do not make a ViT: .*{told}'):
            native.model_of(fields | wrong, what='file')


def test_what_is_assumed_of_images_is_told_apart(tmp_path):
    values = {'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6)}
    metadata = native.normalization_metadata(values, assumed=('std',))
    native.save(tmp_path / 'w', PARAMS, metadata=metadata)
    assert encoders.load_normalization(tmp_path / 'w') == {'mean': (0.1, 0.2, 0.3)}
    assert encoders.load_normalization(tmp_path / 'w', assumed=True) == values
    assert native.normalization_metadata({'mean': None, 'std': None}) == {}


def test_a_directory_is_read_as_a_work_directory(tmp_path, monkeypatch):
    from mim_jax import work_directory

    model = ViT(width=24, heads=3)
    monkeypatch.setattr(work_directory, 'load_encoder', lambda path: (model, {'at': path}))
    stated, params = encoders.load_encoder(tmp_path)
    assert stated['width'] == 24 and params == {'at': tmp_path}


def test_long_lists_of_wrong_names_are_cut():
    expected = {f'layer{i}': np.zeros(2) for i in range(30)}
    with pytest.raises(UserError, match='missing: layer0, .*layer4 and 25 more'):
        fitting.check_params({}, expected, what='file')
