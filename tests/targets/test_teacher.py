"""Teachers: their own input, their weights, and what is said when those are wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models import ViT
from mim_jax.targets import EMA, Teacher, resample_tokens
from mim_jax.targets.tokenizer import Tokenizer
from mim_jax.weights import native

MODEL = ViT(patch_size=(4, 4), width=16, depth=2, heads=2, position='learned')
STUDENT = ViT(patch_size=(4, 4), width=8, depth=1, heads=2)
INPUTS = Inputs((8, 12), 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
IMAGES = np.random.default_rng(0).random((2, 8, 12, 3), np.float32)


def random_params(teacher):
    teacher = teacher.bind(teacher.model, INPUTS)
    shapes = jax.eval_shape(lambda: teacher.init(jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.2, s.shape).astype(s.dtype), shapes)


@pytest.fixture
def teacher(tmp_path):
    made = Teacher(weights=str(tmp_path / 'teacher.safetensors'), model=MODEL, projection=6)
    metadata = native.encoder_metadata(MODEL)
    native.save(made.weights, random_params(made), metadata=metadata)
    return made.bind(STUDENT, INPUTS)


def normalised(images, mean, std):
    return (images - np.array(mean, np.float32)) / np.array(std, np.float32)


def test_tokens_are_the_models_output_times_the_projection(teacher):
    params = teacher.load()
    tokens = jax.jit(teacher)({'teacher': params}, IMAGES)
    assert tokens.shape == (2, 6, 6) and tokens.dtype == np.float32 and teacher.width == 6
    kernel = params['projection']['kernel']
    encoder = {'params': {k: v for k, v in params.items() if k != 'projection'}}
    own = MODEL.apply(encoder, normalised(IMAGES, teacher.mean, teacher.std)).tokens
    np.testing.assert_allclose(tokens, own @ kernel, atol=1e-4)

    as_student = dataclasses.replace(teacher, normalization='student')
    tokens = as_student.tokens(params, IMAGES)
    other = MODEL.apply(encoder, normalised(IMAGES, INPUTS.mean, INPUTS.std)).tokens
    np.testing.assert_allclose(tokens, other @ kernel, atol=1e-4)
    assert np.abs(other - own).max() > 1e-2


def test_a_layer_is_what_the_model_says_after_that_block():
    teacher = Teacher(model=MODEL, layer=1).bind(STUDENT, INPUTS)
    params = random_params(teacher)
    images = normalised(IMAGES, teacher.mean, teacher.std)
    expected = MODEL.apply({'params': params}, images, layers=(1,)).layers[1].tokens
    np.testing.assert_allclose(teacher.tokens(params, IMAGES), expected, atol=1e-5)


def test_another_input_size_is_resized_to_and_resampled_from():
    teacher = Teacher(model=MODEL, input_size=(16, 24), mean=(0, 0, 0), std=(1, 1, 1))
    fine = teacher.bind(dataclasses.replace(STUDENT, patch_size=(2, 2)), INPUTS)
    params = random_params(teacher)
    flat = np.full((1, 8, 12, 3), 0.25, np.float32)
    tokens = fine.tokens(params, flat)
    assert tokens.shape == (1, 24, 16)
    expected = MODEL.apply({'params': params}, np.full((1, 16, 24, 3), 0.25, np.float32)).tokens
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    pooled = np.asarray(teacher.bind(STUDENT, INPUTS)({'teacher': params}, flat))
    np.testing.assert_allclose(pooled, resample_tokens(tokens, (4, 6), (2, 3)), atol=1e-6)


def test_resampling_keeps_constants_linear_fields_and_the_identity():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 6, 3)).astype(np.float32)
    assert resample_tokens(tokens, (2, 3), (2, 3)) is tokens
    constant = np.ones((1, 6, 2), np.float32)
    for grid in ((4, 6), (1, 2), (3, 3)):
        np.testing.assert_allclose(resample_tokens(constant, (2, 3), grid), 1, rtol=1e-6)
    # Halving a grid weighs neighbours 1, 3, 3, 1 (a triangle of twice the width); a ramp stays one
    # away from the edges.
    ramp = np.arange(8, dtype=np.float32)[None, :, None]
    halved = np.asarray(resample_tokens(ramp, (1, 8), (1, 4)))[0, :, 0]
    np.testing.assert_allclose(halved[1:3], [2.5, 4.5], atol=1e-5)


def test_no_gradient_reaches_a_teacher():
    teacher = Teacher(model=MODEL).bind(STUDENT, INPUTS)
    params = random_params(teacher)
    gradient = jax.grad(lambda x: teacher.tokens(params, x).sum())(jnp.asarray(IMAGES))
    assert not np.any(gradient)


def test_an_ema_target_is_the_students_own_function_over_other_parameters():
    shapes = jax.eval_shape(lambda: STUDENT.init(jax.random.key(0), IMAGES))['params']
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(s.dtype), shapes)
    target = EMA().bind(STUDENT, INPUTS)
    assert target.needs_ema
    variables = {'params': {}, 'ema': {'encoder': params}}
    tokens = target(variables, IMAGES)
    expected = STUDENT.apply({'params': params}, normalised(IMAGES, INPUTS.mean, INPUTS.std))
    np.testing.assert_allclose(tokens, expected.tokens, atol=1e-5)


def test_float16_files_load_as_float32(teacher, tmp_path):
    params = teacher.load()
    half = tmp_path / 'half.safetensors'
    native.save(half, params, metadata=native.encoder_metadata(MODEL), dtype='float16')
    again = dataclasses.replace(teacher, weights=str(half)).load()
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_masked_models_encoder_serves_as_teacher(tmp_path):
    masked = dataclasses.replace(MODEL, mask_token=True, drop_path=0.1, scan=False)
    file = str(tmp_path / 'student.safetensors')
    params = random_params(Teacher(model=masked))
    native.save(file, params, metadata=native.encoder_metadata(masked))
    assert 'mask_token' not in Teacher(weights=file, model=MODEL).bind(STUDENT, INPUTS).load()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'weights': None}, r'config.objective.target.weights is not set.*width 16, depth 2.*'),
        (
            {'weights': 'nowhere.safetensors'},
            r'nowhere.safetensors does not exist: `python -m mim_jax.weights import .*width 16',
        ),
        ({'projection': 5}, r'wrong shape: projection/kernel \(16, 6\) instead of \(16, 5\)'),
        ({'model': dataclasses.replace(MODEL, depth=3)}, 'depth is 2 there, 3 in the config'),
        (
            {'model': dataclasses.replace(MODEL, grid=(4, 4))},
            r'position/patches \(2, 3, 16\) instead of \(4, 4, 16\)',
        ),
        ({'model': dataclasses.replace(MODEL, layer_scale=0.1)}, 'layer_scale is None there'),
    ],
)
def test_weights_that_do_not_fit_are_told_in_one_sentence(teacher, change, message):
    with pytest.raises(UserError, match=message) as raised:
        dataclasses.replace(teacher, **change).load()
    assert '\n' not in str(raised.value)
    assert str(raised.value).startswith('config.objective.target.weights')


def test_missing_and_unexpected_names_are_listed(teacher):
    params, metadata = native.load(teacher.weights)
    del params['final_norm']['bias']
    params['extra'] = np.zeros(3, np.float32)
    native.save(teacher.weights, params, metadata=metadata)
    with pytest.raises(UserError, match='missing: final_norm/bias; unexpected: extra'):
        teacher.load()


def test_impossible_fields_are_refused():
    with pytest.raises(ValueError, match='layer 3 is not among the blocks 1 to 2'):
        Teacher(model=MODEL, layer=3)
    with pytest.raises(ValueError, match='normalization'):
        Teacher(normalization='imagenet')


def test_a_normalisation_that_is_not_the_weights_own_is_refused(teacher):
    metadata = native.encoder_metadata(MODEL, mean='[0.5, 0.4, 0.3]', std='[0.2, 0.2, 0.2]')
    native.save(teacher.weights, random_params(teacher), metadata=metadata)
    right = dataclasses.replace(teacher, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert right.load()
    with pytest.raises(
        UserError, match=r'target\.mean = \(0\.485, .* made for \(0\.5, 0\.4, 0\.3\)'
    ):
        teacher.load()
    assert dataclasses.replace(teacher, normalization='student').load()


@pytest.mark.parametrize(
    ('target', 'message'),
    [
        (EMA(layer=0), r'target\.layer = 0 is not among the blocks 1 to 1'),
        (EMA(layer=2), r'target\.layer = 2 is not among the blocks 1 to 1'),
        (Teacher(mean=(0.5, 0.5)), r'target\.mean = \(0\.5, 0\.5\): .* of the 3 channels'),
        (Tokenizer(std=(0.5,)), r'target\.std = \(0\.5,\): .* of the 3 channels'),
    ],
)
def test_what_does_not_fit_the_student_is_told(target, message):
    with pytest.raises(UserError, match=message):
        target.bind(STUDENT, INPUTS)


def test_a_size_is_height_and_width():
    for kind in (Teacher, Tokenizer):
        with pytest.raises(ValueError, match='height, width'):
            kind(input_size=(48,))


def test_taps_are_those_of_the_network_at_the_students_patches(teacher):
    """Same grid: as they are; a finer teacher: each patch the mean of those below it (a ramp's)."""
    params = teacher.load()
    asked = {'layers': (1, 2), 'attention': (2,), 'queries_keys': (1,)}
    encoded = jax.jit(lambda p, x: teacher.encode(p, x, **asked))(params, IMAGES)
    own = {k: v for k, v in params.items() if k != 'projection'}
    seen = normalised(IMAGES, teacher.mean, teacher.std)
    expected = MODEL.apply({'params': own}, seen, **asked)
    kernel = params['projection']['kernel']
    np.testing.assert_allclose(encoded.tokens, expected.tokens @ kernel, atol=1e-4)
    np.testing.assert_allclose(encoded.class_token, expected.class_token @ kernel, atol=1e-4)
    for block in (1, 2):
        for found, true in (
            (encoded.layers[block].tokens, expected.layers[block].tokens),
            (encoded.layers[block].class_token, expected.layers[block].class_token),
        ):
            np.testing.assert_allclose(found, true, atol=1e-5)
    np.testing.assert_allclose(encoded.attention[2], expected.attention[2], atol=1e-6)
    np.testing.assert_allclose(encoded.queries_keys[1][0], expected.queries_keys[1][0], atol=1e-5)

    fine = dataclasses.replace(teacher, input_size=(16, 24))
    coarse = fine.encode(params, IMAGES, **asked)
    assert coarse.layers[1].tokens.shape == (2, 6, 16) and coarse.attention[2].shape == (2, 2, 6)
    alone = fine.bind(dataclasses.replace(STUDENT, patch_size=(2, 2)), INPUTS)
    every = alone.encode(params, IMAGES, **asked)
    weights = np.asarray(every.attention[2]).swapaxes(1, 2)
    pooled = resample_tokens(weights, (4, 6), (2, 3)).swapaxes(1, 2)
    np.testing.assert_allclose(coarse.attention[2], pooled, atol=1e-6)
    gradient = jax.grad(lambda x: teacher.encode(params, x, **asked).layers[1].tokens.sum())
    assert not np.any(gradient(jnp.asarray(IMAGES)))
