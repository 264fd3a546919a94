"""Encoders of ours in `transformers` and under timm's names: the same features."""

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')

from mim_jax.models import ViT  # noqa: E402
from mim_jax.weights import native  # noqa: E402
from mim_jax.weights.__main__ import main  # noqa: E402


def _neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign, originals = _neighbour('foreign'), _neighbour('originals')

SMALL = ViT(patch_size=(8, 8), width=32, depth=2, heads=4, mlp_ratio=2.0)
CLIP = dict(position='learned', patch_bias=False, pre_norm=True, activation='quick_gelu')
CLIP['norm_eps'] = 1e-5
BEIT = dict(position='none', qkv_bias='qv', layer_scale=0.1)
ENCODERS = {
    'fixed positions': ({}, (4, 6), 'ViTModel'),
    'no positions, no bias': ({'position': 'none', 'qkv_bias': 'none'}, (4, 4), 'ViTModel'),
    'learned': ({'position': 'learned', 'activation': 'gelu_tanh'}, (4, 6), 'ViTModel'),
    'clip': (CLIP, (4, 4), 'CLIPVisionModel'),
    'beit shared': ({**BEIT, 'relative_position': 'shared'}, (4, 4), 'BeitModel'),
    'beit both': (
        {**BEIT, 'relative_position': 'both', 'mask_token': True, 'position': 'sincos'},
        (4, 4),
        'BeitModel',
    ),
    'beit with a key bias': (
        {**BEIT, 'relative_position': 'per_block', 'qkv_bias': 'all', 'layer_scale': None},
        (4, 4),
        'BeitModel',
    ),
    'no final norm': ({'final_norm': False}, (4, 4), 'BeitModel'),
    'layer scale': ({'layer_scale': 1.0}, (4, 4), 'Dinov2Model'),
    'registers': (
        {'layer_scale': 1.0, 'num_registers': 3, 'position': 'learned', 'qkv_bias': 'qv'},
        (4, 4),
        'Dinov2WithRegistersModel',
    ),
}


def drawn(model, grid, projection=None):
    """Random parameters, none of them zero."""
    images = jax.ShapeDtypeStruct((1, 8 * grid[0], 8 * grid[1], 3), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda s: rng.normal(0.05, 0.15, s.shape).astype(np.float32), shapes)
    if projection:
        kernel = rng.normal(size=(model.width, projection)).astype(np.float32)
        params['projection'] = {'kernel': kernel}
    return params


def exported(tmp_path, kind, to, projection=None):
    """(ViT, params, images, folder) of an encoder of ours written for others."""
    fields, grid, _ = ENCODERS[kind]
    model = dataclasses.replace(SMALL, **fields)
    params = drawn(model, grid, projection)
    native.save(tmp_path / 'ours', params, metadata=native.encoder_metadata(model))
    arguments = ['export', f'--weights={tmp_path / "ours"}', f'--to={to}']
    arguments += [f'--image_size={8 * grid[0]},{8 * grid[1]}', f'--out={tmp_path / "theirs"}']
    assert main(arguments) == 0
    return model, params, foreign.images(8 * grid[0], 8 * grid[1]), tmp_path / 'theirs'


@pytest.mark.parametrize('kind', ENCODERS)
def test_transformers_computes_the_same(kind, tmp_path, capsys):
    name = ENCODERS[kind][2]
    model, params, images, folder = exported(tmp_path, kind, 'huggingface')
    said = capsys.readouterr().out
    assert f'as {name}' in said
    assert json.loads((folder / 'config.json').read_text())['architectures'] == [name]
    theirs, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report['unexpected_keys'] and not report['mismatched_keys']
    assert all('pooler' in key for key in report['missing_keys'])
    assert bool(report['missing_keys']) == ('pooler_output is untrained' in said)
    out = foreign.run(theirs.eval(), images)
    encoded = foreign.compare_blocks(model, params, out.hidden_states, images=images)
    last = out.last_hidden_state
    foreign.compare_end(model, encoded, theirs.post_layernorm(last) if kind == 'clip' else last)


def test_clips_projection_goes_with_it(tmp_path):
    model, params, images, folder = exported(tmp_path, 'clip', 'huggingface', projection=7)
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    out = foreign.run(theirs.eval(), images)
    encoded = foreign.compare_blocks(model, params, out.hidden_states, images=images)
    foreign.compare(encoded.class_token @ params['projection']['kernel'], out.image_embeds)


@pytest.mark.parametrize('kind', [k for k in ENCODERS if k not in ('no final norm',)])
def test_timms_names_and_arguments(kind, tmp_path):
    """The tensors fit the restated VisionTransformer or Beit, and the arguments say the same."""
    model, params, images, folder = exported(tmp_path, kind, 'timm')
    config = json.loads((folder / 'config.json').read_text())
    args = config['model_args']
    beit = config['architecture'].startswith('beit')
    assert beit == (kind.startswith('beit'))
    registers = 0 if beit else args['reg_tokens']
    tables = args.get('use_rel_pos_bias', False), args.get('use_shared_rel_pos_bias', False)
    theirs = originals.TimmViT(
        width=args['embed_dim'],
        heads=args['num_heads'],
        depth=args['depth'],
        patch=args['patch_size'][0],
        grid=tuple(n // 8 for n in args['img_size']),
        bias=('none', 'qv' if beit else 'all')[args['qkv_bias']],
        scale=None if args['init_values'] is None else 'gamma' if beit else 'ls',
        tables={(0, 0): 'none', (0, 1): 'shared', (1, 0): 'per_block', (1, 1): 'both'}[tables],
        positions=args['use_abs_pos_emb'] if beit else args['pos_embed'] == 'learn',
        class_row=beit or not args['no_embed_class'],
        registers=('reg_token', registers) if registers else None,
        pre_norm=not beit and args['pre_norm'],
        eps=1e-5 if '_clip_' in config['architecture'] else 1e-6,
        activation=args.get('act_layer', 'gelu'),
    )
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    theirs.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
    with torch.no_grad():
        states, end = theirs(foreign.to_torch(images))
    encoded = foreign.compare_blocks(model, params, states, images=images)
    foreign.compare_end(model, encoded, end)


SOURCES = {
    'clip': (
        transformers.CLIPVisionModelWithProjection,
        lambda: transformers.CLIPVisionConfig(**foreign.SMALL, projection_dim=16),
    ),
    'vit': (transformers.ViTModel, lambda: transformers.ViTConfig(**foreign.SMALL)),
    'beit': (
        transformers.BeitModel,
        lambda: transformers.BeitConfig(
            **foreign.SMALL, use_relative_position_bias=True, use_mean_pooling=False
        ),
    ),
    'dinov2': (
        transformers.Dinov2WithRegistersModel,
        lambda: transformers.Dinov2WithRegistersConfig(
            **{k: v for k, v in foreign.SMALL.items() if k != 'intermediate_size'}, mlp_ratio=2
        ),
    ),
}


@pytest.mark.parametrize('kind', SOURCES)
def test_what_is_imported_from_transformers_is_exported_identically(kind, tmp_path):
    cls, config = SOURCES[kind]
    foreign.made(cls, config()).save_pretrained(tmp_path / 'theirs')
    foreign.read(tmp_path / 'theirs', tmp_path / 'ours')
    again = tmp_path / 'again'
    arguments = ['export', f'--weights={tmp_path / "ours"}', '--to=huggingface', f'--out={again}']
    assert main(arguments) == 0
    before, after = (
        safetensors.numpy.load_file(folder / 'model.safetensors')
        for folder in (tmp_path / 'theirs', again)
    )
    assert after.keys() == {name for name in before if not name.startswith('pooler.')}
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)
    left = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    right = json.loads((again / 'config.json').read_text())
    assert {name: left.get(name, value) for name, value in right.items()} == right


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'registers': ('reg_token', 4), 'scale': 'ls', 'class_row': False},
        {'bias': 'qv', 'scale': 'gamma', 'tables': 'both', 'positions': False},
    ],
    ids=['vit', 'registers', 'beit'],
)
def test_what_is_imported_from_timm_is_exported_identically(options, tmp_path):
    model = foreign.randomised(originals.TimmViT(**options))
    before = {name: t.numpy() for name, t in model.state_dict().items()}
    safetensors.numpy.save_file(before, tmp_path / 'theirs.safetensors')
    foreign.read(tmp_path / 'theirs.safetensors', tmp_path / 'ours')
    again = tmp_path / 'again'
    arguments = ['export', f'--weights={tmp_path / "ours"}', '--to=timm', f'--out={again}']
    assert main(arguments) == 0
    after = safetensors.numpy.load_file(again / 'model.safetensors')
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, before[name], err_msg=name)


@pytest.mark.parametrize(
    ('fields', 'to', 'message'),
    [
        ({'class_token': False}, 'huggingface', 'transformers cannot hold .* a class token'),
        ({'patch_size': (8, 4)}, 'huggingface', 'square patches'),
        ({'relative_position': 'both', 'qkv_bias': 'qv'}, 'huggingface', 'a square grid'),
        ({'condition_width': 4}, 'huggingface', 'no condition_width'),
        ({'pre_norm': True}, 'timm', 'no patch bias'),
        ({'condition_width': 4}, 'timm', 'no condition_width'),
        ({'norm_eps': 1e-3}, 'timm', 'norm_eps 1e-6 or 1e-5'),
    ],
)
def test_what_others_cannot_hold_is_one_sentence(fields, to, message, tmp_path, capsys):
    model = dataclasses.replace(SMALL, **fields)
    params = drawn(model, (4, 6))
    native.save(tmp_path / 'ours', params, metadata=native.encoder_metadata(model))
    out = tmp_path / 'theirs'
    arguments = ['export', f'--weights={tmp_path / "ours"}', f'--to={to}', f'--out={out}']
    assert main([*arguments, '--image_size=32,48']) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert re.search(message, error)
    assert not out.exists()
