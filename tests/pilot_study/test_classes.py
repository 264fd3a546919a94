import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from mim_jax.errors import UserError
from mim_jax.pilot_study import classes


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def unit(vectors):
    return np.stack([v / np.sqrt((v.astype(float) ** 2).sum()) for v in vectors])


def written(path, array):
    if path.suffix == '.npy':
        np.save(path, array)
    elif path.suffix == '.npz':
        np.savez(path, text=array)
    else:
        safetensors.numpy.save_file({'text': array}, path)
    return path


@pytest.mark.parametrize('suffix', ['.npy', '.npz', '.safetensors'])
def test_files(suffix, embeddings, tmp_path):
    path = written(tmp_path / f'text{suffix}', embeddings)
    found = classes.from_file(path, num_classes=3, width=4)
    np.testing.assert_allclose(found, unit(embeddings), atol=1e-6)
    assert found.dtype == np.float32


def test_files_that_do_not_fit(embeddings, tmp_path):
    path = written(tmp_path / 'text.npy', embeddings)
    with pytest.raises(UserError, match="width 4, the teacher's tokens have 8"):
        classes.from_file(path, num_classes=3, width=8)
    with pytest.raises(UserError, match='3 classes, the data has 10'):
        classes.from_file(path, num_classes=10, width=4)
    embeddings[1] = 0
    with pytest.raises(UserError, match='zero'):
        classes.from_file(written(path, embeddings), num_classes=3, width=4)
    with pytest.raises(UserError, match='not numbers'):
        classes.from_file(written(path, embeddings[0]), num_classes=3, width=4)


@pytest.mark.parametrize('name', ['text.npy', 'text.npz', 'text.safetensors', 'text.txt'])
def test_files_that_cannot_be_read(name, tmp_path):
    with pytest.raises(UserError, match=name):
        classes.from_file(tmp_path / name, num_classes=3, width=4)
    (tmp_path / name).write_bytes(b'no array')
    with pytest.raises(UserError, match=name):
        classes.from_file(tmp_path / name, num_classes=3, width=4)


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / 'text.npy', np.array([{'a': 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match='cannot be read'):
        classes.from_file(tmp_path / 'text.npy', num_classes=1, width=4)


def test_several_arrays_in_one_file(embeddings, tmp_path):
    np.savez(tmp_path / 'text.npz', a=embeddings, b=embeddings)
    with pytest.raises(UserError, match='2 arrays'):
        classes.from_file(tmp_path / 'text.npz', num_classes=3, width=4)


def test_prompts_are_averaged_per_class(monkeypatch):
    texts = []

    def encode_prompts(path, prompts):
        texts.extend(prompts)
        return unit(np.random.default_rng(1).normal(size=(len(prompts), 4)))

    module = types.SimpleNamespace(encode_prompts=encode_prompts)
    monkeypatch.setitem(sys.modules, 'mim_jax.weights.text', module)
    found = classes.from_prompts('clip', ['cat', 'dog'], prompts=['a {}.', 'the {}.'], width=4)
    assert texts == ['a cat.', 'the cat.', 'a dog.', 'the dog.']
    each = encode_prompts('clip', texts)
    expected = unit(np.stack([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(UserError, match='has no {}'):
        classes.from_prompts('clip', ['cat'], prompts=['a cat'], width=4)


def test_class_means():
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(6, 5, 4)), np.array([0, 1, 1, 0, 2, 1])
    sums = np.zeros((3, 4))
    for image, label in zip(tokens, labels, strict=True):
        sums[label] += image.mean(axis=0)
    counts = np.array([2, 3, 1])
    expected = unit(np.stack([tokens[labels == c].reshape(-1, 4).mean(axis=0) for c in range(3)]))
    np.testing.assert_allclose(classes.from_sums(sums, counts), expected, atol=1e-6)
    with pytest.raises(UserError, match='first: class 1.*max_train'):
        classes.from_sums(sums, np.array([2, 0, 1]))


def test_names(tmp_path):
    path = tmp_path / 'names.txt'
    path.write_text('tabby cat\ndog\n\n')
    assert classes.read_names(path, num_classes=2) == ['tabby cat', 'dog']
    with pytest.raises(UserError, match='2 lines, the data has 3 classes'):
        classes.read_names(path, num_classes=3)
    with pytest.raises(UserError, match='cannot be read'):
        classes.read_names(tmp_path / 'nothing.txt', num_classes=3)
