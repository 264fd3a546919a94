"""Weight files of every kind, damaged at random: files of ours, imports, folders, archives."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mim_jax.models.vit import ViT
from mim_jax.weights import encoders, exporting, importing, mapping, native, timm, timm_export
from mim_jax.weights.__main__ import inspect

MODEL = ViT(patch_size=(4, 4), width=16, depth=2, heads=2, position='learned', grid=(2, 2))
ODD = (
    *(None, True, -1, 0, 3, 10**30, 1.5, -2.5, 1e999, float('nan'), '', 'word', '12', [], [3, 4]),
    *([None], ['a', 'b', 'c'], {}, {'x': {}}, [0.5] * 3, [0.5] * 4, [1, 2, 3], 'x' * 3000),
)
CONFIG = {
    'model_type': 'vit',
    'num_attention_heads': 2,
    'layer_norm_eps': 1e-6,
    'hidden_act': 'gelu',
    'image_size': 8,
    'layer_scale_init_value': 0.1,
    'vision_config': {},
    'text_config': {},
    'architecture': 'vit_tiny',
    'pretrained_cfg': {'input_size': [3, 8, 8], 'mean': [0.5] * 3, 'std': [0.5] * 3},
    'model_args': {'num_heads': 2, 'img_size': 8, 'init_values': 0.1, 'act_layer': 'gelu'},
    'model_cfg': {'vision_cfg': {'width': 16, 'head_width': 8, 'image_size': 8}, 'text_cfg': {}},
    'preprocess_cfg': {'mean': [0.5] * 3, 'std': [0.5] * 3},
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
}


def encoder():
    """(tensors by flat name, metadata) of a file of ours."""
    struct = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), struct))['params']
    rng = np.random.default_rng(0)
    flat = native.flatten(params)
    tensors = {n: rng.normal(size=v.shape).astype(np.float32) for n, v in flat.items()}
    extra = {'image_size': '[8, 8]', 'mean': '[0.5, 0.5, 0.5]', 'std': '[0.25, 0.25, 0.25]'}
    return tensors, native.encoder_metadata(MODEL, **extra)


def damaged(rng, content):
    """Bytes with a few flipped, cut off, put in, taken out, repeated or zeroed."""
    content = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        # Headers are short beside the data, and more can be wrong in them.
        end = len(content) if rng.random() < 0.5 else min(len(content), 600)
        place = int(rng.integers(max(end, 1)))
        size = int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0 and content:
            content[min(place, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = rng.bytes(size)
        elif kind == 3:
            del content[place : place + size]
        elif kind == 4:
            content[place : place + size] = bytes(size)
        else:
            content[place:place] = content[place : place + size]
    return bytes(content)


def own(folder):
    """Files of our own naming: loaded as a teacher, inspected and exported."""
    tensors, metadata = encoder()
    native.save(folder / 'whole', native.unflatten(tensors), metadata=metadata)
    whole = (folder / 'whole').read_bytes()

    def case(rng):
        path = folder / 'w.safetensors'
        kind = rng.choice(['bytes', 'tensors', 'metadata'])
        if kind == 'bytes':
            content, words = damaged(rng, whole), 'damaged bytes'
        else:
            content, words = _rewritten(rng, tensors, metadata, kind)

        def act():
            path.write_bytes(content)
            inspect(path)
            encoders.complete(path, what=str(path))
            read = exporting.of_file(path)
            if kind == 'bytes' and content != whole:
                _same(tensors, native.flatten(read.params))
            out = folder / 'out'
            try:
                timm_export.export(exporting.sized(read, (8, 8)), out, dtype='float32')
            finally:
                shutil.rmtree(out, ignore_errors=True)
            return 'read'

        return f'{kind}: {words}', act

    return case


def _rewritten(rng, tensors, metadata, kind):
    """A well-formed file of ours with one wrong tensor, or one wrong entry of its metadata."""
    tensors, metadata = dict(tensors), {'format': native.FORMAT, **metadata}
    if kind == 'tensors':
        name = str(rng.choice(sorted(tensors)))
        array = tensors.pop(name)
        changes = {
            'missing': {},
            'int32': {name: array.astype(np.int32)},
            'int8': {name: array.astype(np.int8)},
            'float64': {name: array.astype(np.float64)},
            'float16': {name: array.astype(np.float16)},
            'bool': {name: array > 0},
            'transposed': {name: np.ascontiguousarray(array.T)},
            'one more axis': {name: array[None]},
            'cut': {name: np.ascontiguousarray(array[:-1])},
            'empty': {name: array[:0]},
            'scalar': {name: np.ones((), np.float32)},
            'nan': {name: np.where(rng.random(array.shape) < 0.5, np.nan, array)},
            'inf': {name: np.full_like(array, np.inf)},
            'another name': {f'{name}2': array},
            'inside a name': {name: array, f'{name}/x': array},
            'above a name': {name: array, name.split('/')[0]: array},
            'empty name': {name: array, '': array},
        }
        words = str(rng.choice(list(changes)))
        tensors |= changes[words]
        words = f'{name} {words}'
    else:
        name = str(rng.choice(sorted(metadata)))
        value = ODD[rng.integers(len(ODD))]
        if name == 'model' and rng.random() < 0.8:
            fields = json.loads(metadata['model'])
            field = str(rng.choice([*fields, 'unknown']))
            fields[field] = value
            words, text = f'model.{field} = {value!r}', json.dumps(fields)
        else:
            text = (json.dumps(value), '{', '\x00', '[' * 5000)[rng.integers(4)]
            words = f'{name} = {text[:50]}'
        metadata[name] = text
    if rng.random() < 0.5:
        metadata['digest'] = native.digest(tensors)
    return safetensors.numpy.save(tensors, metadata=metadata), words


def _same(before, after):
    """Raises RuntimeError where the arrays differ: damage that passed."""
    if before.keys() != after.keys() or any((before[n] != after[n]).any() for n in before):
        raise RuntimeError('other weights were read, and nothing was said')


def foreign(folder):
    """Other projects' folders, imported: safetensors with a config.json."""
    tensors, _ = encoder()
    theirs = _in_timm_names(tensors)
    whole = safetensors.numpy.save(theirs, metadata={'format': 'pt'})

    def case(rng):
        content, words = whole, 'whole'
        if rng.random() < 0.6:
            content, words = damaged(rng, content), 'damaged'
        elif rng.random() < 0.7:
            content, words = _odd_tensors(rng, theirs)
        config = _odd_config(rng)
        name = 'model.safetensors'
        act = _import(folder, name, content, config)
        return f'{name} {words}, config {config[:200]!r}', act

    return case


def pytorch(folder):
    """Other projects' files of PyTorch, imported: .pth in both forms.  Needs PyTorch."""
    import torch

    tensors, _ = encoder()
    as_torch = {
        name: torch.from_numpy(np.array(array)) for name, array in _in_timm_names(tensors).items()
    }
    kinds = {}
    for name, zipped in (('new.pth', True), ('old.pth', False)):
        torch.save({'model': as_torch}, folder / name, _use_new_zipfile_serialization=zipped)
        kinds[name] = (folder / name).read_bytes()
        (folder / name).unlink()

    def case(rng):
        name = str(rng.choice(list(kinds)))
        content, words = kinds[name], 'whole'
        if rng.random() < 0.8:
            content, words = damaged(rng, content), 'damaged'
        # Only the archive has checksums.
        same = tensors if name == 'new.pth' and content != kinds[name] else None
        config = _odd_config(rng)
        act = _import(folder, name, content, config, same=same)
        return f'{name} {words}, config {config[:200]!r}', act

    return case


def _in_timm_names(tensors):
    return mapping.write(native.unflatten(tensors), timm.rules(MODEL), depth=MODEL.depth)


def _import(folder, name, content, config, *, same=None):
    """Imports file `name` of `content` beside `config`; what is read must be `same`, if given."""

    def act():
        source, out = folder / 'source', folder / 'out'
        source.mkdir()
        try:
            (source / name).write_bytes(content)
            for file in ('config.json', 'preprocessor_config.json'):
                (source / file).write_bytes(config)
            single = name.endswith('pth')
            importing.import_(
                source / name if single else source, out, overrides={'heads': 2} if single else {}
            )
            found = encoders.complete(out, what='out')
            if same is not None:
                _same(same, native.flatten(found.params))
            return 'imported'
        finally:
            shutil.rmtree(source, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)

    return act


def _odd_tensors(rng, tensors):
    tensors = dict(tensors)
    name = str(rng.choice(sorted(tensors)))
    array = tensors.pop(name)
    changes = {
        'missing': {},
        'int32': {name: array.astype(np.int32)},
        'float64': {name: array.astype(np.float64)},
        'flat': {name: array.reshape(-1)},
        'empty': {name: array[:0]},
        'no columns': {name: np.zeros((10**9, 0), np.float32)},
        'nan': {name: np.full_like(array, np.nan)},
        'one more block': {name: array, 'blocks.7.norm1.weight': array},
        'a million blocks': {name: array, 'blocks.1000000.norm1.weight': array},
        'too many digits': {name: array, f'blocks.{"9" * 5000}.norm1.weight': array},
    }
    words = str(rng.choice(list(changes)))
    return safetensors.numpy.save(tensors | changes[words], metadata={'format': 'pt'}), words


def _odd_config(rng):
    if rng.random() < 0.1:
        return (b'', b'{', b'[]', b'3', b'\xff\xfe{', b'[' * 100_000, b'{"a":' * 50_000)[
            rng.integers(7)
        ]
    config = json.loads(json.dumps(CONFIG))
    # Which project's file it is: the first of these words that is there says so.
    for word in ('model_cfg', 'architecture'):
        if rng.random() < 0.6:
            del config[word]
    config['model_type'] = str(rng.choice(['vit', 'clip', 'dinov2', 'beit', 'other']))
    for _ in range(int(rng.integers(3))):
        section = config
        inner = [value for value in config.values() if isinstance(value, dict) and value]
        if inner and rng.random() < 0.4:
            section = inner[rng.integers(len(inner))]
        section[str(rng.choice(sorted(section)))] = ODD[rng.integers(len(ODD))]
    return json.dumps(config).encode()
