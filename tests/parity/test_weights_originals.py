"""Files in the naming of the original projects: OpenAI, timm, DINO, DINOv2, MAE, BEiT."""

import argparse
import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')

from mim_jax.models.positions import sincos_table  # noqa: E402
from mim_jax.weights import importing  # noqa: E402
from mim_jax.weights.text import load_tower  # noqa: E402


def _neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign, originals = _neighbour('foreign'), _neighbour('originals')

OTHER = {'width': 128, 'heads': 2, 'depth': 3, 'patch': 4}  # beside the default size


def made(cls, **options):
    torch.manual_seed(0)
    model = cls(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.15)
    return model


def check(vit, params, states, end, *, images):
    encoded = foreign.compare_blocks(vit, params, states, images=images)
    foreign.compare_end(vit, encoded, end)
    return encoded


@pytest.mark.parametrize('size', [{}, {**OTHER, 'grid': (3, 5)}])
def test_openai_clip_both_towers(size, tmp_path):
    model = made(originals.OpenAICLIP, **size)
    state = {**model.state_dict(), 'input_resolution': torch.tensor(32)}
    torch.save(state, tmp_path / 'clip.pt')
    overrides = {'grid': size['grid']} if size else {}
    vit, params = foreign.read(tmp_path / 'clip.pt', tmp_path / 'ours', overrides=overrides)
    assert (vit.activation, vit.norm_eps, vit.heads) == ('quick_gelu', 1e-5, size.get('heads', 1))
    images = foreign.images(*(n * p for n, p in zip(vit.grid, vit.patch_size, strict=True)))
    with torch.no_grad():
        states, embedding = model.visual(foreign.to_torch(images))
    encoded = foreign.compare_blocks(vit, params, states, images=images)
    foreign.compare(encoded.class_token @ params['projection']['kernel'], embedding)

    tower, params = load_tower(tmp_path / 'ours')
    ids = np.array([[3, 9, 29, 0, 0], [7, 1, 2, 4, 29]])
    with torch.no_grad():
        expected = model.encode_text(torch.from_numpy(ids))
    foreign.compare(tower.apply({'params': params}, ids).embedding, expected)


def test_open_clip_states_what_names_cannot(tmp_path):
    model = made(originals.OpenAICLIP, heads=2, act=torch.nn.functional.gelu)
    source = tmp_path / 'theirs'
    source.mkdir()
    torch.save(model.state_dict(), source / 'open_clip_pytorch_model.bin')
    config = {
        'model_cfg': {
            'vision_cfg': {'width': 64, 'head_width': 32, 'image_size': 32},
            'text_cfg': {'heads': 1},
        },
        'preprocess_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]},
    }
    (source / 'open_clip_config.json').write_text(json.dumps(config))
    found = importing.import_(source, tmp_path / 'ours')
    assert found.encoder.model.activation == found.text.tower.activation == 'gelu'
    assert found.mean == (0.1, 0.2, 0.3)
    images = foreign.images(32, 32)
    with torch.no_grad():
        states, _ = model.visual(foreign.to_torch(images))
    vit, params = foreign.read(source, tmp_path / 'again')
    foreign.compare_blocks(vit, params, states, images=images)


# Of each project: how its encoder differs, what its file has beside it, what is around it.
PROJECTS = {
    'timm': ({}, {'head.weight': (5, 64), 'head.bias': (5,)}, ()),
    'timm with registers': (
        {'registers': ('reg_token', 4), 'scale': 'ls', 'class_row': False},
        {},
        (),
    ),
    'timm clip': ({'pre_norm': True, 'eps': 1e-5}, {}, ('visual.trunk.',)),
    'dino': ({}, {'head.last_layer.weight_v': (7, 3)}, ('module.backbone.',)),
    'dinov2': ({'scale': 'ls', 'mask_token': (1,)}, {}, ()),
    'dinov2 with registers': (
        {'scale': 'ls', 'mask_token': (1,), 'registers': ('register_tokens', 4)},
        {},
        (),
    ),
    'mae': ({}, {'decoder_embed.weight': (8, 64), 'mask_token': (1, 1, 8)}, ()),
    'beit': (
        {'bias': 'qv', 'scale': 'gamma', 'tables': 'shared', 'mask_token': (1, 1)}
        | {'positions': False},
        {'lm_head.weight': (9, 64), 'blocks.0.attn.relative_position_index': (17, 17)},
        (),
    ),
    'beit v2': (
        {'bias': 'qv', 'scale': 'gamma', 'tables': 'per_block', 'mask_token': (1, 1)},
        {'lm_head.weight': (9, 64), 'cls_pt_layers.0.norm1.weight': (64,)},
        (),
    ),
    'data2vec fine-tuned': (
        {'bias': 'qv', 'scale': 'gamma', 'tables': 'both', 'positions': False, 'norm': 'fc_norm'},
        {},
        (),
    ),
}
WRAPPERS = {'dino': 'teacher', 'mae': 'model', 'beit': 'model', 'beit v2': 'model'}


@pytest.mark.parametrize('size', [{}, OTHER | {'grid': (3, 5)}], ids=['square', 'oblong'])
@pytest.mark.parametrize('project', PROJECTS)
def test_projects_that_share_timms_names(project, size, tmp_path):
    options, beside, prefixes = PROJECTS[project]
    model = made(originals.TimmViT, **options, **size)
    if project == 'mae':
        table = sincos_table(model.grid, size.get('width', 64)).reshape(
            1, -1, model.norm.bias.size(0)
        )
        model.pos_embed.data = torch.nn.functional.pad(torch.from_numpy(table), (0, 0, 1, 0))
    prefix = prefixes[0] if prefixes else ''
    state = {prefix + name: value for name, value in model.state_dict().items()}
    outside = prefix.removesuffix('backbone.') if project == 'dino' else prefix
    state.update({outside + name: torch.zeros(shape) for name, shape in beside.items()})
    if project in WRAPPERS:
        state = {
            'epoch': 3,
            'args': argparse.Namespace(lr=1e-3),
            'optimizer': {'state': {0: {'step': torch.ones(())}}},
            WRAPPERS[project]: state,
            'student': {'module.other': torch.zeros(2)},
        }
    torch.save(state, tmp_path / 'theirs.pth')
    overrides = {'grid': size['grid']} if size else {}
    found = importing.import_(tmp_path / 'theirs.pth', tmp_path / 'ours', overrides=overrides)
    vit = found.encoder.model
    assert found.encoder.family == {
        'timm': 'vit',
        'timm with registers': 'dinov2',
        'timm clip': 'clip',
        'data2vec fine-tuned': 'beit',
    }.get(project, project.split()[0])
    assert len(found.match.left_out) == len(beside) + 2 * (options.get('norm') == 'fc_norm')
    assert vit.position == ('sincos' if project == 'mae' else vit.position)
    assert vit.final_norm == ('norm' not in options)
    images = foreign.images(*(n * p for n, p in zip(model.grid, vit.patch_size, strict=True)))
    with torch.no_grad():
        states, end = model(foreign.to_torch(images))
    params = foreign.encoders.load_encoder(tmp_path / 'ours')[1]
    check(vit, params, states, end, images=images)
    assert dataclasses.asdict(vit)['heads'] == size.get('heads', 1)
