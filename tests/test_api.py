"""`mim_jax.load`: features by a path, as a plain application of the network gives them."""

import dataclasses
import functools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mim_jax
from mim_jax import checkpoints, experiment, work_directory
from mim_jax import config as configs
from mim_jax.models.vit import ViT
from mim_jax.weights import native

ROOT = Path(__file__).parent.parent
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MODEL = ViT(patch_size=(8, 8), width=16, depth=2, heads=2, num_registers=2, position='learned')
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@functools.cache
def parameters(model, seed=0):
    """For images of 32x48 pixels, with tables and scales that are no zeros or ones."""
    struct = jax.ShapeDtypeStruct((1, 32, 48, 3), 'float32')
    params = jax.device_get(model.init(jax.random.key(seed), struct)['params'])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)


def save(path, model=MODEL, params=None, **metadata):
    stated = {'mean': json.dumps(MEAN), 'std': json.dumps(STD), **metadata}
    params = parameters(model) if params is None else params
    native.save(path, params, metadata=native.encoder_metadata(model, **stated))
    return path


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A folder as `import` makes it, of an encoder for images of 32x48 pixels."""
    return save(tmp_path_factory.mktemp('imported') / 'encoder.safetensors').parent


@pytest.fixture(scope='module')
def encoder(path):
    return mim_jax.load(path)


@pytest.fixture(scope='module')
def on_one(path):
    return mim_jax.load(path, devices=jax.devices()[:1])


def images(count, size=(32, 48), channels=3, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, channels), np.uint8)


apply = jax.jit(MODEL.apply, static_argnames='layers')


def plain(seen, params=None, layers=()):
    """What the network makes of uint8 images, without the API."""
    params = parameters(MODEL) if params is None else params
    normal = (seen.astype(np.float64) / 255 - MEAN) / STD
    return jax.device_get(apply({'params': params}, normal.astype(np.float32), layers=layers))


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(('count', 'batch_size'), [(1, 64), (13, 64), (13, 5), (16, 8)])
def test_features_are_those_of_the_network(encoder, on_one, devices, count, batch_size):
    encoder = encoder if devices == 8 else on_one
    seen = images(count)
    expected = plain(seen)
    mean = encoder.features(seen, batch_size=batch_size)
    assert mean.shape == (count, 16) and mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected.tokens.mean(axis=1), **TOLERANCE)
    of_class = encoder.features(seen, pool='class', batch_size=batch_size)
    np.testing.assert_allclose(of_class, expected.class_token, **TOLERANCE)
    tokens = encoder.features(seen, pool='tokens', batch_size=batch_size)
    np.testing.assert_allclose(tokens, expected.tokens, **TOLERANCE)


def test_all_devices_share_the_work_and_a_batch_is_compiled_once(path):
    encoder = mim_jax.load(path)
    kernel = encoder.params['patch_embed']['kernel']
    assert len(kernel.devices()) == jax.device_count() == 8 and kernel.is_fully_replicated
    encoder.features(images(40), batch_size=16)  # 16, 16 and 8
    encoder.features(images(13), batch_size=16)
    assert encoder._compiled(pool='mean')._cache_size() == 2
    assert [encoder._rows(n, 100) for n in (1, 8, 9, 17, 100)] == [8, 8, 16, 32, 104]


def test_tokens_class_token_registers_layers_and_attention(encoder):
    seen = images(5)
    expected = plain(seen, layers=(1, 2))
    encoded = encoder(seen, layers=(1, 2), attention=(2,), batch_size=3)
    assert isinstance(encoded, mim_jax.Encoded)
    attention = encoded.attention.pop(2)
    assert attention.shape == (5, 2, 24) and (attention.sum(-1) < 1).all()
    given, wanted = jax.tree.flatten(encoded), jax.tree.flatten(expected)
    assert given[1] == wanted[1]
    for one, other in zip(given[0], wanted[0], strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_allclose(one, other, **TOLERANCE)


def test_every_form_of_the_same_images(encoder):
    seen = images(6)
    expected = encoder.features(seen)
    floats = seen.astype(np.float32) / 255
    mixed = [*seen[:3], *floats[3:]]
    pillow = (Image.fromarray(image) for image in seen)
    forms = (list(seen), iter(seen), floats, floats.astype(np.float64), jax.numpy.asarray(seen))
    for form in (*forms, mixed, pillow):
        np.testing.assert_allclose(encoder.features(form, batch_size=4), expected, **TOLERANCE)


def test_an_iterable_is_read_a_batch_at_a_time(path):
    encoder, read = mim_jax.load(path, devices=jax.devices()[:1]), []
    compute = encoder._compiled(pool='mean')

    def counting(params, batch):
        read.append(taken)
        return compute(params, batch)

    taken = 0

    def stream():
        nonlocal taken
        for image in images(6):
            taken += 1
            yield image

    encoder._compiled = lambda pool: counting
    assert encoder.features(stream(), batch_size=2).shape == (6, 16)
    assert read == [2, 4, 6]


@pytest.mark.parametrize('size', [(40, 48), (100, 70), (16, 24), (57, 200)])
def test_images_of_another_size_are_resized_as_pillow_does(encoder, size):
    seen = images(2, size)
    # Blurred: where a cubic kernel overshoots, the order of Pillow's passes shows.
    seen = np.stack(
        [np.asarray(Image.fromarray(i).resize((8, 8)).resize(size[::-1])) for i in seen]
    )
    side = min(size[0] / 32, size[1] / 48)
    h, w = round(32 * side), round(48 * side)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    boxes = {'centre': (left, top, left + w, top + h), 'whole': (0, 0, size[1], size[0])}
    for resize, box in boxes.items():
        small = np.stack(
            [
                np.asarray(Image.fromarray(i).crop(box).resize((48, 32), Image.Resampling.BICUBIC))
                for i in seen
            ]
        )
        for form in (seen, seen.astype(np.float32) / 255):
            (batch,) = encoder._batches(form, resize, 2)
            assert batch.dtype == form.dtype and batch.shape == (2, 32, 48, 3)
            levels = batch.astype(np.float64) * (255 if form is not seen else 1)
            assert np.abs(levels - small).max() < 1.1
        tokens = encoder.features(seen, pool='tokens', resize=resize)
        (batch,) = encoder._batches(seen, resize, 2)
        np.testing.assert_allclose(tokens, plain(batch).tokens, **TOLERANCE)


def test_images_at_their_own_size(encoder):
    seen = images(3, (48, 24))
    tokens = encoder.features(seen, pool='tokens', resize='none')
    assert tokens.shape == (3, 18, 16)
    np.testing.assert_allclose(tokens, plain(seen).tokens, **TOLERANCE)


def test_a_chosen_size(path):
    encoder = mim_jax.load(path, image_size=48)
    assert encoder.image_size == (48, 48)
    seen = images(2, (48, 48))
    np.testing.assert_allclose(encoder.features(seen, pool='tokens'), plain(seen).tokens, atol=1e-5)


def test_what_it_says_of_itself(path):
    encoder = mim_jax.load(str(path))
    assert isinstance(encoder, mim_jax.Encoder)
    assert encoder.model == MODEL and encoder.image_size == (32, 48) and encoder.channels == 3
    assert encoder.mean == MEAN and encoder.std == STD and encoder.projection is None
    expected = parameters(MODEL)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(encoder.params), expected)
    assert 'width 16' in repr(encoder) and '32x48' in repr(encoder)


def test_a_projection_lies_beside_the_encoder(tmp_path):
    kernel = np.ones((16, 4), np.float32)
    params = {**parameters(MODEL), 'projection': {'kernel': kernel}}
    encoder = mim_jax.load(save(tmp_path / 'clip', params=params))
    np.testing.assert_array_equal(encoder.projection, kernel)
    assert encoder.features(images(1)).shape == (1, 16)


def test_the_kernel_of_attention_is_that_of_this_device(tmp_path):
    trained = dataclasses.replace(MODEL, dtype='bfloat16', attention_kernel='cudnn')
    file = save(tmp_path / 'on_a_gpu.safetensors', trained, parameters(MODEL))
    assert mim_jax.load(file).features(images(1)).shape == (1, 16)


def test_a_size_that_only_the_metadata_state(tmp_path):
    model = dataclasses.replace(MODEL, position='sincos')
    bare = mim_jax.load(save(tmp_path / 'bare', model, parameters(model)))
    assert bare.image_size is None and 'any size' in repr(bare)
    with pytest.raises(
        mim_jax.UserError, match=r"give image_size to mim_jax.load, or resize='none"
    ):
        bare.features(images(1))
    own = bare.features(images(1), resize='none')
    stated = mim_jax.load(save(tmp_path / 'w', model, parameters(model), image_size='[32, 48]'))
    assert stated.image_size == (32, 48)
    np.testing.assert_allclose(stated.features(images(1)), own, **TOLERANCE)


def test_the_shipped_teacher_states_all_that_is_needed():
    encoder = mim_jax.load(Path(mim_jax.__file__).parent / 'assets/quickstart_teacher.safetensors')
    teacher = configs.load(str(ROOT / 'configs' / 'quickstart_teacher.py'))
    assert encoder.image_size == tuple(teacher.data.image_size)
    assert encoder.mean == teacher.data.mean and encoder.std == teacher.data.std
    assert encoder.features(images(2, (60, 50))).shape == (2, teacher.model.width)


def test_bfloat16_comes_back_as_float32(path):
    encoder = mim_jax.load(path, model={'dtype': 'bfloat16'})
    features = encoder.features(images(2))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, plain(images(2)).tokens.mean(axis=1), atol=0.1)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run of two checkpoints that averages its parameters: {(step, average): its params}."""
    config = experiment.default_config('classification')
    config.model.update(dataclasses.asdict(MODEL))
    config.data.update(image_size=(32, 48), mean=MEAN, std=STD)
    work_directory.claim(tmp_path, experiment.from_config(config))
    held = {(s, a): parameters(MODEL, seed=10 * s + a) for s in (1, 2) for a in (False, True)}

    def restore(workdir, step=None):
        step = step or 2
        params, ema = held[step, False], held[step, True]
        return {'params': {'encoder': params, 'head': {}}, 'ema': {'encoder': ema}}, step

    monkeypatch.setattr(checkpoints, 'restore_variables', restore)
    return tmp_path, held


def test_a_run_gives_its_newest_average_unless_told_otherwise(workdir):
    path, held = workdir
    seen = images(2)
    for options, key in (
        ({}, (2, True)),
        ({'average': False}, (2, False)),
        ({'step': 1}, (1, True)),
        ({'step': 1, 'average': False}, (1, False)),
    ):
        expected = plain(seen, params=held[key]).tokens.mean(axis=1)
        np.testing.assert_allclose(
            mim_jax.load(path, **options).features(seen), expected, atol=1e-5
        )


def test_a_run_without_average(workdir, monkeypatch):
    path, held = workdir
    variables = {'params': {'encoder': held[1, False]}, 'ema': {'head': {}}}
    monkeypatch.setattr(checkpoints, 'restore_variables', lambda workdir, step: (variables, 1))
    np.testing.assert_allclose(
        mim_jax.load(path).features(images(2)),
        plain(images(2), params=held[1, False]).tokens.mean(axis=1),
        **TOLERANCE,
    )
    with pytest.raises(mim_jax.UserError, match='keeps no average of its encoder'):
        mim_jax.load(path, average=True)


def test_paths_that_hold_no_encoder(path, tmp_path):
    def refused(where, said, **options):
        with pytest.raises(mim_jax.UserError, match=said) as told:
            mim_jax.load(where, **options)
        assert '\n' not in str(told.value)

    refused(tmp_path / 'gone', 'no such file or directory')
    (tmp_path / 'empty').mkdir()
    refused(tmp_path / 'empty', 'holds no encoder: there is neither')
    (tmp_path / 'junk').write_bytes(b'no weights')
    refused(tmp_path / 'junk', 'cannot be read as safetensors')
    stated = {'model': '{"depth": 1}'}
    native.save(tmp_path / 'text', {'blocks': {'x': np.zeros(2)}}, metadata=stated)
    refused(tmp_path / 'text', 'holds no image encoder')
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'config.json').write_text('{"model_type": "vit"}')
    refused(tmp_path / 'theirs', 'not a work directory')
    run = tmp_path / 'run'
    work_directory.claim(run, experiment.Experiment())
    refused(run, 'there is no checkpoint')
    refused(path, 'only a work directory has steps', step=3)
    refused(path, 'only a work directory has steps and averages', average=True)


def test_normalisation_that_nothing_states(tmp_path):
    native.save(
        tmp_path / 'w', parameters(MODEL), metadata=native.encoder_metadata(MODEL, mean='[0.5]')
    )
    with pytest.raises(mim_jax.UserError, match=r'does not state the std .*give std=…'):
        mim_jax.load(tmp_path / 'w')
    encoder = mim_jax.load(tmp_path / 'w', mean=MEAN, std=0.25)
    assert encoder.mean == MEAN and encoder.std == (0.25,) * 3
    with pytest.raises(mim_jax.UserError, match='mean has 2 numbers, but .* sees 3 channels'):
        mim_jax.load(tmp_path / 'w', mean=(0.5, 0.5), std=0.25)
    with pytest.raises(mim_jax.UserError, match='above 0'):
        mim_jax.load(tmp_path / 'w', std=0.0)


def test_other_mistakes_of_loading(path, tmp_path):
    with pytest.raises(mim_jax.UserError, match='not a whole number of 8x8 patches'):
        mim_jax.load(path, image_size=50)
    with pytest.raises(mim_jax.UserError, match='hats'):
        mim_jax.load(path, model={'hats': 2})
    model = dataclasses.replace(MODEL, condition_width=4, position='none')
    struct = jax.ShapeDtypeStruct((1, 32, 48, 3), 'float32')
    params = jax.device_get(model.init(jax.random.key(0), struct)['params'])
    with pytest.raises(mim_jax.UserError, match='no features of images alone'):
        mim_jax.load(save(tmp_path / 'conditioned', model, params))


@pytest.mark.parametrize(
    ('given', 'options', 'said'),
    [
        (images(2, channels=1), {}, r'has 1 channels \(they come last\), but the encoder sees 3'),
        (np.moveaxis(images(2), 3, 1), {}, r'has 48 channels'),
        (images(1)[0], {}, r'image\[None\]'),
        ([images(2)], {}, r'an image is an array \[H,W,C\]'),
        (images(2).astype(np.int64), {}, 'not int64'),
        (images(2).astype(np.float32), {}, r'float images lie in \[0, 1\].*divide by 255'),
        (np.full((1, 32, 48, 3), np.nan), {}, 'float images lie in'),
        ('photo.jpg', {}, 'not str'),
        (['photo.jpg'], {}, 'an image is an array'),
        (7, {}, 'not int'),
        (images(0), {}, 'there are no images'),
        ([], {}, 'there are no images'),
        (images(2), {'pool': 'max'}, "pool='max' is none of 'mean', 'class', 'tokens'"),
        (images(2), {'resize': 'crop'}, "resize='crop' is none of 'centre', 'whole', 'none'"),
        (images(2), {'batch_size': 0}, 'at least 1'),
        (images(2, (33, 48)), {'resize': 'none'}, 'not a whole number of 8x8 patches'),
        ([*images(1), *images(1, (32, 32))], {'resize': 'none'}, '32x48 pixels, another 32x32'),
    ],
)
def test_images_that_the_encoder_does_not_see(encoder, given, options, said):
    with pytest.raises(mim_jax.UserError, match=said) as told:
        encoder.features(given, **options)
    assert '\n' not in str(told.value)


def test_blocks_and_class_tokens_that_there_are_not(encoder, tmp_path):
    for asked in ({'layers': (0,)}, {'layers': (3,)}, {'attention': (1, 3)}):
        with pytest.raises(mim_jax.UserError, match='the encoder has the blocks 1 to 2'):
            encoder(images(1), **asked)
    model = dataclasses.replace(MODEL, class_token=False)
    encoder = mim_jax.load(save(tmp_path / 'w', model, parameters(model)))
    with pytest.raises(mim_jax.UserError, match='has no class token'):
        encoder.features(images(1), pool='class')
    with pytest.raises(mim_jax.UserError, match='has no class token'):
        encoder(images(1), attention=(1,))
    assert encoder(images(1)).class_token is None


def test_the_import_is_light():
    code = 'import sys, mim_jax; mim_jax.load; print(*sys.modules)'
    loaded = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith('mim_jax')}
    assert ours == {'mim_jax', 'mim_jax.errors'}
    assert not {'jax', 'flax', 'numpy', 'orbax'} & {name.partition('.')[0] for name in loaded}
    with pytest.raises(AttributeError, match='no attribute'):
        _ = mim_jax.nothing


@pytest.mark.slow
def test_the_guide_and_the_example_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """The blocks of docs/api.md, one after the other, on a short run of the quick start."""
    from mim_jax import main

    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    monkeypatch.chdir(tmp_path)
    arguments = [
        f'--config={ROOT / "configs" / "quickstart.py"}',
        '--config.train.total_steps=2',
        '--config.train.ema.decay=0.9',
        '--config.checkpoint.every_steps=1',
        '--config.data.batch_size=8',
        '--config.data.source.num_train=16',
        '--config.data.source.num_test=16',
        '--config.eval.evaluators=()',
        '--config.mesh.data=1',
        '--config.log.num_pictures=1',
        '--config.log.tensorboard=false',
        '--config.log.progress=false',
    ]
    assert main.main(arguments) == 0
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'api.md').read_text(), re.DOTALL)
    assert len(blocks) == 4
    assert blocks[0] in (ROOT / 'README.md').read_text()  # the same lines on its first screen
    names = {'images': images(3, (60, 50))}
    capsys.readouterr()
    for block in blocks:
        exec(block.replace('step=360', 'step=1'), names)  # the quick start saves every 120
    assert names['features'].shape == (3, 96)
    said = capsys.readouterr().out
    assert '(10, 96) (10, 96) (10, 64, 96) (10, 130, 96)' in said
    assert '{2: (10, 64, 96), 3: (10, 64, 96)}' in said and '48x72' in said

    monkeypatch.setattr(sys, 'argv', ['features.py'])
    runpy.run_path(str(ROOT / 'docs' / 'examples' / 'features.py'))
    said = capsys.readouterr().out
    assert 'shows the same digit' in said and 'block 3' in said and 'head by head' in said
