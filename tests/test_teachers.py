import json

import jax
import numpy as np
import pytest

from mim_jax import teachers
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.vit import ViT
from mim_jax.targets import Teacher
from mim_jax.weights import native
from tests.conftest import TEACHER, TEACHER_PROJECTION

HALF = json.dumps([0.5, 0.5, 0.5])
QUARTER = json.dumps([0.25, 0.25, 0.25])


def save(path, *, model, channels=3, size=(32, 48), metadata, drop=None):
    """A teacher of random weights."""
    inputs = Inputs(size, channels, (0.5,) * channels, (0.25,) * channels)
    teacher = Teacher(model=model, mean=inputs.mean, std=inputs.std).bind(model, inputs)
    params = jax.jit(teacher.init)(jax.random.key(0))
    params.pop(drop, None)
    native.save(path, params, metadata=metadata)
    return path


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """A teacher with a learned position table, made for images of 32x48 pixels."""
    model = ViT(**TEACHER, position='learned')
    metadata = native.encoder_metadata(model, mean=HALF, std=QUARTER)
    path = tmp_path_factory.mktemp('learned') / 'encoder.safetensors'
    return save(path, model=model, metadata=metadata)


def test_file_that_states_everything(learned):
    loaded = teachers.load(learned)
    assert loaded.teacher.mean == (0.5,) * 3 and loaded.teacher.std == (0.25,) * 3
    assert loaded.teacher.model == ViT(**TEACHER, position='learned')
    assert loaded.teacher.projection is None and loaded.teacher.width == TEACHER['width']
    assert loaded.channels == 3 and loaded.image_size == (32, 48)
    hash(loaded.teacher)  # so that it may be an argument of a compiled function


def test_directory_of_an_import(learned):
    assert teachers.load(learned.parent).teacher.model == teachers.load(learned).teacher.model


def test_tokens_are_those_of_the_teacher_in_a_config(teacher_file):
    loaded = teachers.load(teacher_file, mean=(0.5,), std=(0.25,))
    written = Teacher(
        weights=str(teacher_file),
        model=ViT(**TEACHER),
        projection=TEACHER_PROJECTION,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    bound = written.bind(written.model, loaded.teacher.inputs)
    assert loaded.image_size is None and loaded.teacher == bound
    written = written.bind(written.model, Inputs((32, 32), 3, (0.5,) * 3, (0.25,) * 3))
    params = written.load()
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    tokens = loaded.teacher.tokens(loaded.params, images)
    np.testing.assert_array_equal(tokens, written.tokens(params, images))


def test_work_directory(tmp_path, monkeypatch):
    from mim_jax import checkpoints, experiment, work_directory

    config = experiment.default_config('simmim')
    config.model.update(TEACHER, mask_token=True)
    config.data.update(image_size=(32, 40), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    run = experiment.from_config(config)
    work_directory.claim(tmp_path, run)
    params = run.model.init(jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 40, 3), 'float32'))
    variables = {'params': {'encoder': jax.device_get(params['params'])}}
    monkeypatch.setattr(checkpoints, 'restore_variables', lambda workdir, **_: (variables, 1))
    loaded = teachers.load(tmp_path)
    assert loaded.image_size == (32, 40) and loaded.teacher.model.mask_token
    assert loaded.teacher.mean == (0.1, 0.2, 0.3) and loaded.teacher.std == (0.4, 0.5, 0.6)
    assert loaded.teacher.tokens(loaded.params, np.zeros((1, 32, 40, 3))).shape == (1, 20, 16)


def test_grey_teacher(tmp_path):
    metadata = native.encoder_metadata(ViT(**TEACHER))
    path = save(tmp_path / 'grey', model=ViT(**TEACHER), channels=1, metadata=metadata)
    loaded = teachers.load(path, mean=(0.5,), std=(0.25,))
    assert loaded.channels == 1 and loaded.teacher.mean == (0.5,)


def test_model_fields_by_flag(tmp_path):
    model = ViT(**TEACHER)
    path = save(tmp_path / 'bare', model=model, metadata={'mean': HALF, 'std': QUARTER})
    with pytest.raises(UserError, match='--model'):
        teachers.load(path)
    fields = {**TEACHER, 'patch_size': [8, 8]}
    assert teachers.load(path, model=fields).teacher.model == model
    with pytest.raises(UserError, match='hats'):
        teachers.load(path, model={**fields, 'hats': 2})
    with pytest.raises(UserError, match='does not fit'):
        teachers.load(path, model={**fields, 'depth': 3})


def test_mistakes(learned, teacher_file, tmp_path):
    with pytest.raises(UserError, match='nothing: there is no such file or directory'):
        teachers.load(tmp_path / 'nothing')
    with pytest.raises(UserError, match='does not state the mean.*--mean'):
        teachers.load(teacher_file)
    with pytest.raises(UserError, match='--mean has 2 numbers'):
        teachers.load(learned, mean=(0.5, 0.5))
    with pytest.raises(UserError, match='above 0'):
        teachers.load(learned, std=(0.0,))
    (tmp_path / 'junk').write_bytes(b'no weights')
    with pytest.raises(UserError, match='junk'):
        teachers.load(tmp_path / 'junk')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no encoder'):
        teachers.load(tmp_path / 'empty')
    model = ViT(**TEACHER)
    metadata = native.encoder_metadata(model, mean=HALF, std=QUARTER)
    path = save(tmp_path / 'part', model=model, metadata=metadata, drop='final_norm')
    with pytest.raises(UserError, match='missing: final_norm'):
        teachers.load(path)
    path = save(tmp_path / 'headless', model=model, metadata=metadata, drop='patch_embed')
    with pytest.raises(UserError, match='no image encoder'):
        teachers.load(path)
