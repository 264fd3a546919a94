"""The text tower and its tokenizer against Hugging Face transformers; a vocabulary by hand."""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')
pytest.importorskip('tokenizers', reason='needs the extra "text"')

from mim_jax.errors import UserError  # noqa: E402
from mim_jax.models.text import TextTower  # noqa: E402
from mim_jax.weights import importing, native  # noqa: E402
from mim_jax.weights.text import encode_prompts, load_tower, token_ids  # noqa: E402

_spec = importlib.util.spec_from_file_location('foreign', Path(__file__).parent / 'foreign.py')
foreign = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(foreign)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
MERGES = [('a', 't</w>'), ('c', 'at</w>'), ('d', 'o'), ('do', 'g</w>'), ('o', 'f</w>')]
PROMPTS = ['a photo of a cat.', 'A  DOG, of 12', "it's do-do dog cat cat cat cat cat cat", 'é']


@pytest.fixture(scope='module')
def vocabulary():
    """CLIP's form: bytes, bytes at a word's end, merges, then the two ends."""
    symbols = [*LETTERS, *(f'{c}</w>' for c in LETTERS), *(a + b for a, b in MERGES)]
    symbols += ['<|startoftext|>', '<|endoftext|>']
    return {symbol: i for i, symbol in enumerate(symbols)}


def write_files(folder, vocabulary, *, whole):
    folder.mkdir(exist_ok=True)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES)
    if whole:
        tokenizer.backend_tokenizer.save(str(folder / 'tokenizer.json'))
    else:
        (folder / 'vocab.json').write_text(json.dumps(vocabulary))
        lines = ['#version: 0.2', *(' '.join(pair) for pair in MERGES)]
        (folder / 'merges.txt').write_text('\n'.join(lines) + '\n')
    return tokenizer


@pytest.mark.parametrize('whole', [True, False])
def test_tokens_are_those_of_clips_tokenizer(whole, tmp_path, vocabulary):
    theirs = write_files(tmp_path, vocabulary, whole=whole)
    ids = token_ids(tmp_path, PROMPTS, context=12)
    expected = theirs(PROMPTS, truncation=True, max_length=12)['input_ids']
    assert [list(row[: len(e)]) for row, e in zip(ids, expected, strict=True)] == expected
    assert not any(row[len(e) :].any() for row, e in zip(ids, expected, strict=True))


@pytest.mark.parametrize(
    ('end_token', 'activation'), [('stated', 'quick_gelu'), ('legacy', 'gelu')]
)
def test_embeddings_and_logits(end_token, activation, tmp_path, vocabulary):
    end = {'stated': vocabulary['<|endoftext|>'], 'legacy': 2}[end_token]
    sizes = {k: v for k, v in foreign.SMALL.items() if k not in ('image_size', 'patch_size')}
    text = {
        **sizes,
        'vocab_size': len(vocabulary),
        'max_position_embeddings': 20,
        'hidden_act': activation,
        'eos_token_id': end,
        'bos_token_id': vocabulary['<|startoftext|>'],
    }
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**foreign.LARGER, 'hidden_act': activation},
        projection_dim=24,
    )
    theirs = foreign.made(transformers.CLIPModel, config)
    source = tmp_path / 'theirs'
    theirs.save_pretrained(source)
    tokenizer = write_files(source, vocabulary, whole=True)
    found = importing.import_(source, tmp_path / 'ours')
    assert found.text.tower.end_token == (None if end_token == 'legacy' else end)
    assert sorted(p.name for p in (tmp_path / 'ours').iterdir()) == [
        'encoder.safetensors',
        'text.safetensors',
        'tokenizer.json',
    ]

    inputs = tokenizer(PROMPTS, truncation=True, max_length=20, padding=True, return_tensors='pt')
    images = foreign.images(40, 40)
    with torch.no_grad():
        out = theirs(**inputs, pixel_values=foreign.to_torch(images))
    tower, params = load_tower(tmp_path / 'ours')
    encoded = jax.jit(lambda p, ids: tower.apply({'params': p}, ids))(
        params, token_ids(tmp_path / 'ours', PROMPTS, context=tower.context)
    )
    real = inputs['attention_mask'].numpy().astype(bool)  # a token sees none after itself
    last = out.text_model_output.last_hidden_state.numpy()
    foreign.compare(np.asarray(encoded.tokens)[real], last[real])
    foreign.compare(encoded.embedding, out.text_model_output.pooler_output)
    prompts = encode_prompts(tmp_path / 'ours', PROMPTS)
    foreign.compare(prompts, out.text_embeds)

    vit, params = foreign.read(source, tmp_path / 'again')
    projection = params.pop('projection')['kernel']
    encode = jax.jit(lambda p, x: vit.apply({'params': p}, x).class_token)
    embeds = encode(params, images) @ projection
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    foreign.compare(theirs.logit_scale.exp().item() * embeds @ prompts.T, out.logits_per_image)


def test_a_folder_without_its_tokenizer_is_one_sentence(tmp_path):
    tower = TextTower(vocabulary=90, context=8, width=8, depth=1, heads=2, projection=4)
    params = jax.tree.map(np.asarray, tower.init(jax.random.key(0))['params'])
    metadata = {'text': json.dumps(dataclasses.asdict(tower))}
    native.save(tmp_path / 'text.safetensors', params, metadata=metadata)
    with pytest.raises(UserError, match='has no tokenizer: put'):
        encode_prompts(tmp_path, ['a'])
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(UserError, match='the tokenizer cannot be read'):
        encode_prompts(tmp_path, ['a'])


def test_no_sentences_and_a_tokenizer_of_another_model(tmp_path, vocabulary):
    write_files(tmp_path, vocabulary, whole=False)
    tower = TextTower(
        vocabulary=len(vocabulary), context=8, width=8, depth=1, heads=2, projection=4
    )
    for size, prompts in ((len(vocabulary), []), (5, ['a cat'])):
        small = dataclasses.replace(tower, vocabulary=size)
        params = jax.tree.map(np.asarray, small.init(jax.random.key(0))['params'])
        metadata = {'text': json.dumps(dataclasses.asdict(small))}
        native.save(tmp_path / 'text.safetensors', params, metadata=metadata)
        if prompts:
            with pytest.raises(UserError, match='its files are of another model'):
                encode_prompts(tmp_path, prompts)
        else:
            assert encode_prompts(tmp_path, prompts).shape == (0, 4)
