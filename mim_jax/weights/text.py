"""Sentences as unit vectors: the imported text tower of a CLIP, and its tokenizer."""

from pathlib import Path

import jax
import numpy as np

from mim_jax import storage
from mim_jax.errors import UserError
from mim_jax.models.text import TextTower
from mim_jax.weights import fitting, native

# How CLIP splits text before its byte pairs (Radford et al., 2021).
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
START, END = '<|startoftext|>', '<|endoftext|>'
BATCH = 256  # sentences encoded at once


def encode_prompts(path, prompts: list[str]) -> np.ndarray:
    """Embeddings float32 [n,P], of unit length, of n sentences by the text tower in a folder.

    path: a folder that `python -m mim_jax.weights import` made of a whole CLIP, with the files of
    its tokenizer. A sentence longer than the tower's context is cut, as CLIP's own code can cut it.
    Raises UserError where the tower, the tokenizer's files or the library `tokenizers` are absent.
    """
    tower, params = load_tower(path)
    ids = token_ids(path, prompts, context=tower.context)
    if ids.max(initial=0) >= tower.vocabulary:
        raise UserError(
            f'{path}: the tokenizer gives token {ids.max()}, and the text tower knows '
            f'{tower.vocabulary}: its files are of another model'
        )
    encode = jax.jit(lambda params, ids: tower.apply({'params': params}, ids).embedding)
    starts = range(0, max(len(ids), 1), BATCH)
    embeddings = np.concatenate([encode(params, ids[i : i + BATCH]) for i in starts])
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def load_tower(path) -> tuple[TextTower, dict]:
    """(TextTower, params) of a folder that `import` made, or of its text.safetensors."""
    path = storage.path(path)
    file = path / 'text.safetensors' if path.is_dir() else path
    if not file.exists():
        raise UserError(
            f'{file} does not exist: `python -m mim_jax.weights import` writes it where the source '
            'is a whole CLIP'
        )
    params, metadata = native.load(file)
    if 'text' not in metadata:
        raise UserError(f'{file} is not a text tower (its metadata lacks text)')
    fields = native.stated(metadata, 'text', what=file)
    tower = native.built(TextTower, fields, what=file)
    expected = jax.eval_shape(lambda: tower.init(jax.random.key(0)))['params']
    fitting.check_params(params, expected, what=str(file))
    return tower, params


def token_ids(path, prompts, *, context) -> np.ndarray:
    """Token ids int32 [n,T] of sentences, T at most `context`, filled with 0 after their ends."""
    rows = [encoding.ids for encoding in _tokenizer(Path(path)).encode_batch(list(prompts))]
    rows = [ids if len(ids) <= context else [*ids[: context - 1], ids[-1]] for ids in rows]
    table = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _tokenizer(folder):
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "sentences need the library tokenizers: `pip install 'mim_jax[text]'`"
        ) from None
    whole, vocabulary, merges = (
        folder / name for name in ('tokenizer.json', 'vocab.json', 'merges.txt')
    )
    try:
        if whole.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if vocabulary.is_file() and merges.is_file():
            return _byte_pairs(vocabulary, merges)
    except Exception as error:  # the library's own, of no documented kind
        raise UserError(f'{folder}: the tokenizer cannot be read ({error})') from error
    raise UserError(
        f"{folder} has no tokenizer: put CLIP's tokenizer.json, or its vocab.json and merges.txt, "
        'into it'
    )


def _byte_pairs(vocabulary, merges):
    """CLIP's tokenizer from the two files of its byte-pair encoding."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab, pairs = models.BPE.read_file(str(vocabulary), str(merges))
    model = models.BPE(vocab, pairs, end_of_word_suffix='</w>', unk_token=END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior='removed', invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{START} $A {END}', special_tokens=[(t, vocab[t]) for t in (START, END)]
    )
    return tokenizer
