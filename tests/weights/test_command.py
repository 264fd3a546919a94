"""`python -m mim_jax.weights` as a user calls it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import checkpoints
from mim_jax.preservation import CheckpointConfig
from mim_jax.train_step import TrainState
from mim_jax.weights import encoders, native
from mim_jax.weights.__main__ import main

CONFIG = """
from mim_jax.experiment import default_config


def get_config():
    config = default_config('dtm')
    config.data.image_size = (32, 32)
    config.objective.masking.num_masked = 6
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, mask_token=True)
    config.objective.target.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.target.projection = 4
    return config
"""


def test_random_teacher_and_inspect(tmp_path, capsys):
    (tmp_path / 'tiny.py').write_text(CONFIG)
    out = tmp_path / 'teacher.safetensors'
    arguments = ['random', f'--config={tmp_path / "tiny.py"}', f'--out={out}', '--dtype=float16']
    assert main([*arguments, '--config.objective.target.projection=3']) == 0
    stated, params = encoders.load_encoder(out)
    assert params['projection']['kernel'].shape == (16, 3)
    assert stated['width'] == 16
    assert main(['inspect', str(out)]) == 0
    shown = capsys.readouterr().out
    assert 'projection/kernel' in shown and 'F16' in shown and '[16, 3]' in shown


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['inspect', 'nowhere'], 'error: weights file nowhere does not exist'),
        (['random', '--config=nowhere.py', '--out=x'], 'there is no file nowhere.py'),
        (['export', '--workdir=nowhere', '--out=x'], '--workdir=nowhere: there is no such'),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_metadata_that_makes_no_model_is_one_sentence(tmp_path, capsys):
    params = {'patch_embed': {'kernel': np.zeros((12, 4), np.float32)}}
    native.save(tmp_path / 'w', params, metadata={'model': '{"hats": 2}'})
    arguments = ['export', f'--weights={tmp_path / "w"}', f'--out={tmp_path / "out"}']
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert 'w: its model fields do not make a ViT' in error and 'hats' in error


def test_a_runs_encoder_goes_out_with_its_size_and_normalisation(tmp_path, monkeypatch, capsys):
    import jax

    from mim_jax import work_directory
    from mim_jax.models import ViT

    model = ViT(patch_size=(8, 8), width=16, depth=1, heads=2)
    images = jax.ShapeDtypeStruct((1, 24, 32, 3), 'float32')
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']
    params = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    data = {'image_size': [24, 32], 'mean': [0.1] * 3, 'std': [0.2] * 3}
    steps = []

    def load_encoder(path, *, step=None):
        steps.append(step)
        return model, params

    monkeypatch.setattr(work_directory, 'load_encoder', load_encoder)
    monkeypatch.setattr(work_directory, 'section', lambda path, name: {'data': data}[name])
    run = ['export', f'--workdir={tmp_path}']
    assert main([*run, f'--out={tmp_path / "own"}']) == 0
    normalization = encoders.load_normalization(tmp_path / 'own')
    assert normalization == {'mean': (0.1,) * 3, 'std': (0.2,) * 3}
    capsys.readouterr()
    assert main([*run, '--step=7', '--to=huggingface', f'--out={tmp_path / "theirs"}']) == 0
    assert steps == [None, 7] and 'its pooler_output is untrained' in capsys.readouterr().out
    config = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    assert config['image_size'] == [24, 32] and config['architectures'] == ['ViTModel']
    processor = json.loads((tmp_path / 'theirs' / 'preprocessor_config.json').read_text())
    assert processor['image_std'] == [0.2] * 3
    # The file alone has no table whose size would tell the images'.
    native.save(tmp_path / 'bare', params, metadata=native.encoder_metadata(model))
    arguments = ['export', f'--weights={tmp_path / "bare"}', '--to=timm']
    assert main([*arguments, f'--out={tmp_path / "timm"}']) == 2
    assert 'give --image_size=' in capsys.readouterr().err
    assert main([*arguments, f'--out={tmp_path / "timm"}', '--image_size=48,50']) == 2
    assert '--image_size=48,50 is not a whole number of 8x8' in capsys.readouterr().err
    assert main([*arguments, f'--out={tmp_path / "timm"}', '--image_size=48']) == 0
    config = json.loads((tmp_path / 'timm' / 'config.json').read_text())
    assert config['model_args']['img_size'] == [48, 48]


def test_a_step_is_of_a_work_directory(capsys):
    with pytest.raises(SystemExit):
        main(['export', '--weights=file', '--out=x', '--step=3'])
    assert '--step needs --workdir' in capsys.readouterr().err


def test_a_work_directory_is_inspected(tmp_path, capsys):
    config = {
        'data': {'image_size': [24, 32], 'mean': [0.5], 'std': [0.25]},
        'model': {'width': 16, 'depth': 1},
        'objective': {'name': 'mae'},
    }
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'checkpoints').mkdir()
    assert main(['inspect', str(tmp_path)]) == 2
    assert 'there is no checkpoint' in capsys.readouterr().err
    kept = checkpoints.Checkpoints(tmp_path, CheckpointConfig())
    kernel = {'encoder': {'kernel': jnp.zeros((2, 3))}, 'bias': jnp.zeros(4, jnp.bfloat16)}
    for step in (3, 5):
        one = jnp.int32(1)
        state = TrainState(jnp.int32(step), {'params': kernel}, {'count': one}, refused=0 * one)
        kept.save(step, state, {'data': None})
    kept.close()
    assert main(['inspect', str(tmp_path)]) == 0
    lines = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        'params/bias bfloat16 [4]',
        'params/encoder/kernel float32 [2, 3]',
        '2 tensors, 10 numbers',
        'image_size = [24, 32]',
        'mean = [0.5]',
        'model = {"width": 16, "depth": 1}',
        'objective = mae',
        'std = [0.25]',
        'step = 5, of checkpoints of [3, 5]',
    ]
