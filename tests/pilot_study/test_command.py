"""The whole command on tiny scenes, and the sentences for mistakes."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.pilot_study import __main__ as command
from tests.conftest import TEACHER_PROJECTION

TINY = ('--image_size=32', '--max_train=80', '--max_test=20', '--num_pictures=2')


@pytest.fixture
def flags(teacher_file, tmp_path):
    """Flags of a run on embedded scenes: 16 tokens of 32x32 pixels."""
    teacher = (f'--teacher={teacher_file}', '--mean=0.5', '--std=0.25')
    return [*teacher, '--data=embedded', *TINY, f'--out={tmp_path / "out"}']


def test_embedded(flags, tmp_path, capsys):
    out = command.main(flags)
    table = (out / 'table.md').read_text()
    assert table in capsys.readouterr().out
    assert '| 16 tokens | 8 groups |' in table and 'class-mean accuracy' in table
    assert 'zero-shot' not in table
    results = json.loads((out / 'results.json').read_text())
    assert results['num_test'] == 20 and results['class_directions'] == 'training means'
    figures = results['figures']
    for name, sides in figures.items():
        assert -1 <= sides['tokens'] <= 1, name
        assert sides['difference'] == pytest.approx(sides['groups'] - sides['tokens'], abs=1e-6)
    # Averaging draws tokens together.
    assert figures['pair_cosine']['difference'] > 0
    picture = cv2.imread(str(out / 'predictions.png'))
    assert picture.shape[1] == 3 * (224 + 5) + 5  # photo, tokens, groups


def test_text_embeddings(flags, tmp_path):
    np.save(tmp_path / 'text.npy', np.random.default_rng(0).normal(size=(10, TEACHER_PROJECTION)))
    out = command.main([*flags, f'--text_embeddings={tmp_path / "text.npy"}', '--num_groups=4'])
    assert '| zero-shot accuracy of tokens |' in (out / 'table.md').read_text()
    results = json.loads((out / 'results.json').read_text())
    assert results['class_directions'] == 'text' and results['num_groups'] == 4
    assert 3 * 224 < cv2.imread(str(out / 'predictions.png')).shape[1] <= 1000  # rows of three


def mistakes(tmp_path):
    np.save(tmp_path / 'wide.npy', np.ones((10, TEACHER_PROJECTION + 1)))
    np.save(tmp_path / 'few.npy', np.ones((9, TEACHER_PROJECTION)))
    for name in ('flat', 'broken/train/a', 'broken/train/b', 'broken/test/a', 'one/train/a'):
        (tmp_path / name).mkdir(parents=True)
    image = np.zeros((40, 40, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'flat' / '0.png'), image)
    cv2.imwrite(str(tmp_path / 'one' / 'train' / 'a' / '0.png'), image)
    for name in ('train/a/0.png', 'train/b/1.png', 'test/a/2.png'):
        (tmp_path / 'broken' / name).write_bytes(b'no image')
    return [
        ('--teacher=nowhere', 'nowhere: there is no such file'),
        ('--num_groups=17', '16 tokens'),
        (f'--text_embeddings={tmp_path}/wide.npy', 'has width 9'),
        (f'--text_embeddings={tmp_path}/few.npy', '9 classes'),
        (f'--data={tmp_path}/flat', 'no labels'),
        (f'--data={tmp_path}/one', 'one class'),
        (f'--data={tmp_path}/broken', '0.png'),
        ('--data=nowhere', 'no folder'),
        ('--image_size=33', 'image_size'),
        ('--image_size=128', '32 to 64 pixels'),
        ('--text=nowhere', '--classes'),
    ]


def test_every_mistake_is_one_sentence(flags, tmp_path):
    for flag, sentence in mistakes(tmp_path):
        with pytest.raises(UserError, match=sentence) as raised:
            command.main([*flags, flag])
        assert '\n' not in str(raised.value)
        assert not (tmp_path / 'out').exists(), flag


def test_an_out_that_cannot_be_is_told_before_the_study(flags, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('kept')
    monkeypatch.delattr(command.teachers, 'from_flags')
    for out in ('file', 'file/deep'):
        with pytest.raises(UserError, match='file is not a directory'):
            command.main([*flags, f'--out={tmp_path / out}'])
    assert (tmp_path / 'file').read_text() == 'kept'


def test_names_of_classes_belong_to_text(flags, capsys):
    with pytest.raises(SystemExit):
        command.main([*flags, '--prompt=a {}'])
    assert '--text' in capsys.readouterr().err


def test_exit_status():
    arguments = [
        sys.executable,
        '-m',
        'mim_jax.pilot_study',
        '--teacher=nowhere',
        '--data=embedded',
    ]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith('--teacher=nowhere:')
    assert 'Traceback' not in ran.stderr
