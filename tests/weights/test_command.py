"""`python -m mim_jax.weights` as a user calls it."""

import pytest

from mim_jax.weights import native
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
    stated, params = native.load_encoder(out)
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
