"""What `import` and `inspect` say, and what they leave behind; parity is in tests/parity."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from mim_jax.models import ViT
from mim_jax.weights import encoders, native
from mim_jax.weights.__main__ import main

WIDTH, DEPTH = 64, 2


def vit_tensors():
    """A ViT in timm's names, written out by hand: 64 wide, 1 head, 2 blocks, 8x8 patches, 3x3."""
    shapes = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, 10, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, 8, 8),
        'patch_embed.proj.bias': (WIDTH,),
        'norm.weight': (WIDTH,),
        'norm.bias': (WIDTH,),
        'head.weight': (5, WIDTH),
        'head.bias': (5,),
    }
    for i in range(DEPTH):
        for name, rows, columns in (
            ('attn.qkv', 3 * WIDTH, WIDTH),
            ('attn.proj', WIDTH, WIDTH),
            ('mlp.fc1', 2 * WIDTH, WIDTH),
            ('mlp.fc2', WIDTH, 2 * WIDTH),
        ):
            shapes[f'blocks.{i}.{name}.weight'] = (rows, columns)
            shapes[f'blocks.{i}.{name}.bias'] = (rows,)
        for name in ('norm1', 'norm2'):
            shapes[f'blocks.{i}.{name}.weight'] = shapes[f'blocks.{i}.{name}.bias'] = (WIDTH,)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def run(tmp_path, tensors, *arguments, command='import'):
    file = tmp_path / 'theirs.safetensors'
    safetensors.numpy.save_file(tensors, file)
    out = [f'--out={tmp_path / "ours"}'] if command == 'import' else []
    return main([command, str(file), *out, *arguments])


def refused(tmp_path, capsys, status):
    """The one sentence; nothing is left in the folder but the source."""
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith('theirs')]
    return error


def test_a_folder_that_serves_as_a_teacher(tmp_path, capsys):
    from mim_jax.inputs import Inputs
    from mim_jax.targets import Teacher

    assert run(tmp_path, vit_tensors()) == 0
    shown = capsys.readouterr().out
    assert "assumed, as nothing states it: activation='gelu', norm_eps=1e-06, heads=1" in shown
    assert 'left out, 2 tensors: head.bias, head.weight' in shown
    # The printed lines are a config: run as they stand, they make a teacher that loads.
    from mim_jax import experiment
    from mim_jax.config import build

    config = experiment.default_config('dtm')
    lines = [line.strip() for line in shown.splitlines() if line.startswith('    config.')]
    exec('\n'.join(lines), {'config': config})
    section = {k: v for k, v in config.objective.target.items() if k != 'name'}
    teacher = build(Teacher, section, path='target')
    assert teacher.mean == (0.485, 0.456, 0.406)
    inputs = Inputs((24, 24), 3, (0.5,) * 3, (0.5,) * 3)
    params = teacher.bind(teacher.model, inputs).load()
    kernel = vit_tensors()['blocks.1.mlp.fc1.weight'].T
    np.testing.assert_array_equal(params['blocks']['mlp']['fc1']['kernel'][1], kernel)
    metadata = native.load(tmp_path / 'ours' / 'encoder.safetensors')[1]
    assert metadata['family'] == 'vit'


def test_a_guessed_normalisation_is_known_but_is_no_fact(tmp_path, capsys):
    """Without a config the usual values serve where none are given, and refuse none."""
    from mim_jax import teachers
    from mim_jax.inputs import Inputs
    from mim_jax.targets import Teacher

    ours, again = tmp_path / 'ours', tmp_path / 'again.safetensors'
    assert run(tmp_path, vit_tensors()) == 0
    assert "the family's mean=(0.485, 0.456, 0.406), std=(" in capsys.readouterr().out
    assert main(['export', f'--weights={ours}', f'--out={again}']) == 0
    for weights in (ours, again):
        assert encoders.load_normalization(weights) == {}
        loaded = teachers.load(weights)
        assert loaded.teacher.std == (0.229, 0.224, 0.225)
        half = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
        teacher = Teacher(weights=str(weights), model=loaded.teacher.model, **half)
        inputs = Inputs((24, 24), 3, (0.5,) * 3, (0.5,) * 3)
        assert teacher.bind(teacher.model, inputs).load()
    theirs = tmp_path / 'huggingface'
    assert main(['export', f'--weights={ours}', '--to=huggingface', f'--out={theirs}']) == 0
    processor = json.loads((theirs / 'preprocessor_config.json').read_text())
    assert processor['image_mean'] == [0.485, 0.456, 0.406]


def test_inspect_says_what_import_would(tmp_path, capsys):
    tensors = vit_tensors()
    extra = np.zeros((3,), np.float32)
    lacking = {**tensors, 'blocks.0.extra': extra, 'norm.bias': extra}
    del lacking['blocks.1.attn.proj.bias']
    assert run(tmp_path, lacking, command='inspect') == 0
    shown = capsys.readouterr().out
    for line in (
        'family: vit (timm ViT, DeiT, DINO and MAE encoders)',
        'missing: 1 (blocks.N.attn.proj.bias)',
        'wrong shape: 1 (norm.bias [3] instead of [64])',
        'unexpected: 1 (blocks.N.extra)',
        'left out: 2 (head.bias, head.weight)',
    ):
        assert line in shown
    assert 'depth=2' in shown and 'grid=(3, 3)' in shown
    # Every parameter of the encoder is counted, and no other tensor.
    model = ViT(patch_size=(8, 8), width=64, depth=2, heads=1, mlp_ratio=2, position='learned')
    images = jax.ShapeDtypeStruct((1, 24, 24, 3), np.float32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    size = sum(x.size for x in jax.tree.leaves(params))
    assert run(tmp_path, tensors, command='inspect') == 0
    assert f'size: {size:,} parameters in {len(tensors) - 2} tensors' in capsys.readouterr().out


def without(tensors, part):
    return {name: t for name, t in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: without(t, '1.norm2'), 'missing: blocks.1.norm2.weight, blocks.1.norm2.bias'),
        (lambda t: t | {'neck.weight': np.zeros(2)}, 'unexpected: neck.weight'),
        (
            lambda t: t | {'blocks.1.norm1.bias': np.zeros(3, np.float32)},
            'wrong shape: blocks.1.norm1.bias [3] instead of [64]',
        ),
        (lambda t: t | {'pos_embed': np.zeros((1, 12, WIDTH))}, 'give --model.grid=ROWS,COLUMNS'),
        (lambda t: t | {'dist_token': np.zeros((1, 1, WIDTH))}, 'a distilled DeiT'),
        (lambda t: without(t, 'pos_embed'), 'it holds no positions'),
        (
            lambda t: {'conv1.weight': np.zeros((8, 3, 7, 7)), 'layer1.0.conv1.weight': np.ones(2)},
            'holds none of the encoders that can be read',
        ),
        (lambda t: {n: x[..., :48] for n, x in t.items()}, 'refused whole'),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(change, message, tmp_path, capsys):
    status = run(tmp_path, change(vit_tensors()))
    assert message in refused(tmp_path, capsys, status)


def test_a_truncated_file_is_refused(tmp_path, capsys):
    safetensors.numpy.save_file(vit_tensors(), tmp_path / 'theirs')
    data = (tmp_path / 'theirs').read_bytes()
    (tmp_path / 'theirs').write_bytes(data[: len(data) // 2])
    status = main(['import', str(tmp_path / 'theirs'), f'--out={tmp_path / "ours"}'])
    assert 'truncated' in refused(tmp_path, capsys, status)


def test_without_pytorch_its_files_are_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'theirs.pth').write_bytes(b'anything')
    status = main(['import', str(tmp_path / 'theirs.pth'), f'--out={tmp_path / "ours"}'])
    assert 'PyTorch is not installed' in refused(tmp_path, capsys, status)


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError('disk full')

    monkeypatch.setattr(native, 'write_whole', fail)
    with pytest.raises(OSError, match='disk full'):
        run(tmp_path, vit_tensors())
    assert [p.name for p in tmp_path.iterdir()] == ['theirs.safetensors']


def test_an_existing_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / 'ours').mkdir()
    (tmp_path / 'ours' / 'precious').write_text('kept')
    assert run(tmp_path, vit_tensors()) == 2
    assert 'exists already' in capsys.readouterr().err
    assert [p.name for p in (tmp_path / 'ours').iterdir()] == ['precious']


def test_what_is_given_by_hand_comes_first(tmp_path, capsys):
    tensors = vit_tensors() | {'pos_embed': np.zeros((1, 9, WIDTH), np.float32)}
    arguments = ('--model.heads=4', '--model.grid=2,4', '--model.activation=quick_gelu')
    assert run(tmp_path, tensors, *arguments) == 0
    stated, params = encoders.load_encoder(tmp_path / 'ours')
    assert (stated['heads'], stated['activation']) == (4, 'quick_gelu')
    assert params['position']['patches'].shape == (2, 4, WIDTH)
    assert run(tmp_path, tensors, '--model.head=4') == 2
    assert 'did you mean' in capsys.readouterr().err


def test_shards_and_configs_of_a_folder_are_read(tmp_path, capsys):
    source = tmp_path / 'theirs'
    source.mkdir()
    tensors = vit_tensors()
    names = sorted(tensors)
    parts = {'a.safetensors': names[::2], 'b.safetensors': names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({n: tensors[n] for n in part}, source / file)
    index = {'weight_map': {name: file for file, part in parts.items() for name in part}}
    (source / 'model.safetensors.index.json').write_text(json.dumps(index))
    config = {
        'architecture': 'vit_base_patch16_224',
        'model_args': {'num_heads': 2, 'act_layer': 'quick_gelu'},
        'pretrained_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [1, 1, 1], 'input_size': [3, 24, 24]},
    }
    (source / 'config.json').write_text(json.dumps(config))
    assert main(['import', str(source), f'--out={tmp_path / "ours"}']) == 0
    assert 'assumed' not in capsys.readouterr().out
    stated, params = encoders.load_encoder(tmp_path / 'ours')
    assert (stated['heads'], stated['activation']) == (2, 'quick_gelu')
    normalization = encoders.load_normalization(tmp_path / 'ours')
    assert normalization == {'mean': (0.1, 0.2, 0.3), 'std': (1, 1, 1)}
    np.testing.assert_array_equal(params['class_token'], tensors['cls_token'][0, 0])

    (source / 'b.safetensors').unlink()
    assert main(['import', str(source), f'--out={tmp_path / "again"}']) == 2
    assert 'b.safetensors does not exist' in capsys.readouterr().err
    assert not (tmp_path / 'again').exists()


def test_a_file_of_ours_says_its_names(tmp_path, capsys):
    assert run(tmp_path, vit_tensors()) == 0
    capsys.readouterr()
    assert main(['inspect', str(tmp_path / 'ours')]) == 0
    shown = capsys.readouterr().out
    assert 'blocks/attention/qkv/kernel' in shown and 'family = vit' in shown


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        ('30', '--image_size=30,30 is not a whole number of 8x8 patches'),
        ('24,32', '--image_size=24,32: the position table of this encoder is for images of 24,24'),
    ],
)
@pytest.mark.parametrize('to', ['mim_jax', 'timm', 'huggingface'])
def test_an_image_size_that_does_not_fit_is_refused(size, message, to, tmp_path, capsys):
    assert run(tmp_path, vit_tensors()) == 0
    capsys.readouterr()
    out = tmp_path / 'out'
    arguments = ['export', f'--weights={tmp_path / "ours"}', f'--to={to}', f'--out={out}']
    assert main([*arguments, f'--image_size={size}']) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not out.exists()
    assert main([*arguments, '--image_size=24']) == 0


def test_what_is_imported_can_be_exported_in_our_naming(tmp_path):
    assert run(tmp_path, vit_tensors()) == 0
    out = tmp_path / 'one.safetensors'
    assert main(['export', f'--weights={tmp_path / "ours"}', f'--out={out}']) == 0
    before, after = encoders.load_encoder(tmp_path / 'ours'), encoders.load_encoder(out)
    assert before[0] == after[0]
    for name, value in native.flatten(before[1]).items():
        np.testing.assert_array_equal(native.flatten(after[1])[name], value)
    assert dataclasses.asdict(ViT()).keys() == after[0].keys()
