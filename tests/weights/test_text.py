"""What sentences need; the numbers are checked in tests/parity."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.models.text import TextTower
from mim_jax.weights import native
from mim_jax.weights.text import encode_prompts, load_tower

TOWER = TextTower(vocabulary=9, context=6, width=8, depth=2, heads=2, projection=4, end_token=3)


@pytest.fixture
def params():
    shapes = jax.eval_shape(lambda: TOWER.init(jax.random.key(0)))['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def test_what_follows_the_end_has_no_effect(params):
    encode = jax.jit(lambda ids: TOWER.apply({'params': params}, ids))
    short, other = encode(np.array([[1, 7, 3, 0, 0]])), encode(np.array([[1, 7, 3, 8, 3]]))
    np.testing.assert_allclose(short.embedding, other.embedding, atol=1e-6)
    np.testing.assert_allclose(short.tokens[:, :3], other.tokens[:, :3], atol=1e-6)
    changed = encode(np.array([[1, 6, 3, 0, 0]]))
    assert np.abs(changed.embedding - short.embedding).max() > 1e-2


def test_a_tower_is_read_whole_or_not_at_all(params, tmp_path):
    with pytest.raises(UserError, match=r'text\.safetensors does not exist'):
        load_tower(tmp_path)
    native.save(tmp_path / 'text.safetensors', params)
    with pytest.raises(UserError, match='is not a text tower'):
        load_tower(tmp_path)
    metadata = {'text': json.dumps(dataclasses.asdict(TOWER))}
    native.save(tmp_path / 'text.safetensors', params, metadata=metadata)
    tower, read = load_tower(tmp_path)
    assert tower == TOWER
    np.testing.assert_array_equal(read['position'], params['position'])
    del params['final_norm']
    native.save(tmp_path / 'text.safetensors', params, metadata=metadata)
    with pytest.raises(UserError, match='missing: final_norm'):
        load_tower(tmp_path)


def test_without_the_library_it_is_one_sentence(params, tmp_path, monkeypatch):
    metadata = {'text': json.dumps(dataclasses.asdict(TOWER))}
    native.save(tmp_path / 'text.safetensors', params, metadata=metadata)
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(UserError, match=r"pip install 'mim_jax\[text\]'"):
        encode_prompts(tmp_path, ['a photo'])
