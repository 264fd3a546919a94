"""The command line: what it does with good arguments, and what it says to bad ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mim_jax import main
from mim_jax.logs import read_metrics

ROOT = Path(__file__).parent.parent

CONFIG = """
'''A run of seconds for the tests.'''
from mim_jax.experiment import default_config

def get_config(method='simmim'):
    config = default_config(method)
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=64, num_test=16)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.model.mask_token = True
    if method == 'dtm':
        config.objective.masking.update(num_masked=6, min_block=2)
    config.mesh.data = 1
    config.train.total_steps = 2
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=2)
    return config
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Function (*arguments) -> exit status, standard error; runs in a folder with tiny.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')  # JAX is running here already
    (tmp_path / 'tiny.py').write_text(CONFIG)

    def call(*arguments, config='tiny.py', workdir='work'):
        capfd.readouterr()
        status = main.main([f'--config={config}', f'--workdir={workdir}', *arguments])
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def refused(run):
    """Function (*arguments, said=...): checks for one sentence, status 2, an untouched folder."""

    def check(*arguments, said, **options):
        before = snapshot(Path('.'))
        status, error = run(*arguments, **options)
        assert status == 2
        lines = [line for line in error.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1
        assert 'Traceback' not in error
        for text in said:
            assert text in lines[0]
        assert snapshot(Path('.')) == before

    return check


def snapshot(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    }


def photos(folder, count=4, size=(32, 32)):
    import cv2

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f'{i}.jpg'), rng.integers(0, 255, (*size, 3), np.uint8))


@pytest.mark.parametrize(
    ('argument', 'said'),
    [
        ('--config.data.bach_size=3', ['config.data.bach_size', 'did you mean batch_size?']),
        ('--config.dta.batch_size=3', ['config.dta', 'did you mean data?']),
        ('--config.objective.masking.ration=1', ['did you mean ratio?']),
        ('--config.data.batch_size=many', ['config.data.batch_size=many', 'expected int']),
        ('--config.optimizer.schedule=cosin', ["one of 'cosine'"]),
        ('--config.objective.name=sim', ['did you mean simmim?']),
        ('--config.train.accumulation=0', ['train: accumulation = 0']),
        ('--workdri=x', ['--workdri=x', 'unknown argument']),
        ('--config.data.batch_size', ['a value is missing']),
        ('--extend', ['--extend: there is no run in --workdir=work']),
    ],
)
def test_mistyped_arguments(refused, argument, said):
    refused(argument, said=said)


def test_config_file_that_is_not_there(refused):
    refused(config='tin.py', said=['no file tin.py', 'did you mean tiny.py?'])


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['name=folder', 'path=nowhere'], ['source.path', 'nowhere', 'give the folder']),
        (['name=folder', 'path=empty'], ['no images in', 'empty', 'expected files']),
        (['name=folder'], ['config.data.source.path is not set']),
        (
            ['name=tfds', 'dataset=cifar10', 'path=nowhere'],
            ['nowhere', 'tfds build', 'array_record'],
        ),
    ],
)
def test_missing_data(refused, arguments, said):
    Path('empty').mkdir()
    refused(*(f'--config.data.source.{argument}' for argument in arguments), said=said)


def test_missing_teacher_file(refused):
    refused(
        '--config.objective.target.weights=gone.safetensors',
        config='tiny.py:dtm',
        said=[
            'config.objective.target.weights: gone.safetensors does not exist: '
            '`python -m mim_jax.weights import'
        ],
    )
    refused(config='tiny.py:dtm', said=['config.objective.target.weights is not set'])


def test_batch_that_does_not_divide(refused):
    refused(
        '--config.mesh.data=2',
        '--config.mesh.fsdp=2',
        '--config.data.batch_size=6',
        said=['config.data.batch_size = 6', 'data 2 x fsdp 2', 'use for example 8'],
    )


def test_image_that_does_not_divide(refused):
    refused('--config.data.image_size=(36,32)', said=['36x32', '8x8 patches', 'model.patch_size'])


def test_mesh_larger_than_the_devices(refused):
    refused('--config.mesh.data=64', said=['config.mesh', 'needs 64 devices', 'there are 8'])


def test_masks_larger_than_the_grid(refused):
    refused('--config.objective.masking.ratio=1.5', said=['objective.masking', '1.5'])


def test_work_directory_of_another_config(run, refused):
    assert run()[0] == 0
    refused(
        '--config.optimizer.weight_decay=0.5',
        '--config.data.batch_size=16',
        said=['optimizer.weight_decay: 0.05 -> 0.5', 'data.batch_size: 8 -> 16'],
    )
    status, _ = run('--config.log.every_steps=2', '--config.mesh.data=2')
    assert status == 0


def test_corrupt_images_are_skipped_and_counted(run, caplog):
    photos(Path('photos'), count=12)
    Path('photos/5.jpg').write_bytes(b'not a photo')
    arguments = ['--config.data.source.name=folder', '--config.data.source.path=photos']
    status, error = run(*arguments, '--config.train.total_steps=6')
    assert status == 0
    assert (error + caplog.text).count(os.path.join('photos', '5.jpg')) == 1
    assert read_metrics('work')[-1]['data/corrupt_images'] == 1


def test_data_that_has_moved_may_be_resumed(run):
    photos(Path('photos'), count=12)
    assert run('--config.data.source.name=folder', '--config.data.source.path=photos')[0] == 0
    Path('photos').rename('elsewhere')
    moved = ['--config.data.source.name=folder', '--config.data.source.path=elsewhere']
    assert run(*moved)[0] == 0
    assert run()[0] == 2  # other data


def test_too_many_corrupt_images_stop_the_run(run):
    photos(Path('photos'), count=12)
    for i in range(4):
        Path(f'photos/{i}.jpg').write_bytes(b'not a photo')
    status, error = run('--config.data.source.name=folder', '--config.data.source.path=photos')
    assert status == 2
    assert 'max_corrupt_share' in error
    assert 'Traceback' not in error


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(run):
    arguments = ['--config.checkpoint.every_steps=1', '--config.train.total_steps=40']
    arguments += ['--config.optimizer.learning_rate=1e30', '--config.optimizer.scaling=none']
    arguments += ['--config.optimizer.warmup_steps=20']
    status, error = run(*arguments)
    assert status == 2
    (message,) = (line for line in error.splitlines() if line.startswith('error: '))
    step = int(message.split('Step ')[1].split(':')[0])
    saved = sorted(int(path.name) for path in Path('work/checkpoints').iterdir())
    assert saved[-1] == step - 1
    assert read_metrics('work')[-1]['step'] == step - 1


def test_a_finished_run_has_its_files(run):
    assert run()[0] == 0
    lines = [json.loads(line) for line in Path('work/metrics.jsonl').read_text().splitlines()]
    losses = {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}
    assert sorted(losses) == [1, 2]
    knn = {line['step']: line['eval/knn/top1'] for line in lines if 'eval/knn/top1' in line}
    assert sorted(knn) == [0, 2]
    assert list(Path('work/pictures').glob('reconstruction*.png'))
    assert json.loads(Path('work/config.json').read_text())['train']['total_steps'] == 2
    before = snapshot(Path('work'))
    assert run()[0] == 0
    assert snapshot(Path('work')) == before


def test_a_finished_run_stays_what_it_was(run):
    assert run()[0] == 0
    before = snapshot(Path('work'))
    assert run('--config.eval.knn.k=(3,)')[0] == 0
    assert snapshot(Path('work')) == before


def test_an_evaluation_that_fails_costs_nothing(run, monkeypatch):
    from mim_jax.evaluators import KNN

    calls = []

    def fails_later(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) > 1:
            raise FloatingPointError('no neighbours')
        yield 'top1', 0.5

    monkeypatch.setattr(KNN, 'run', fails_later)
    status, error = run('--config.train.total_steps=4', '--config.eval.every_steps=2')
    assert status == 0 and len(calls) == 3
    assert [path.name for path in sorted(Path('work/checkpoints').iterdir())] == ['2', '4']
    steps = [line['step'] for line in read_metrics('work') if 'train/loss' in line]
    assert steps == [1, 2, 3, 4] and list(Path('work/pictures').glob('*_000004.png'))


def test_a_last_evaluation_that_is_missing_is_made_up_for(run, monkeypatch):
    from mim_jax.evaluators import KNN

    real, calls = KNN.run, []

    def fails_once(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise FloatingPointError('no neighbours')
        yield from real(self, *arguments, **options)

    monkeypatch.setattr(KNN, 'run', fails_once)
    assert run()[0] == 0
    steps = [line['step'] for line in read_metrics('work') if 'eval/knn/top1' in line]
    assert steps == [0]
    assert run()[0] == 0 and run()[0] == 0
    steps = [line['step'] for line in read_metrics('work') if 'eval/knn/top1' in line]
    assert steps == [0, 2] and len(calls) == 3
    assert [line['step'] for line in read_metrics('work') if 'train/loss' in line] == [1, 2]


def test_an_evaluation_that_cannot_work_is_told_at_the_start(run):
    status, error = run('--config.eval.evaluators=("fewshot",)')
    assert status == 2 and 'shots' in error
    assert not list(Path('work').glob('checkpoints/*'))


def test_a_broken_photo_among_the_pictures_costs_nothing(run):
    for split in 'train', 'test':
        photos(Path('photos') / split / 'a', count=8)
        photos(Path('photos') / split / 'b', count=8)
    for photo in list(Path('photos/test/a').iterdir())[:4]:
        photo.write_bytes(photo.read_bytes()[:100])
    status, error = run('--config.data.source.name=folder', '--config.data.source.path=photos')
    assert status == 0, error
    assert [path.name for path in Path('work/checkpoints').iterdir()] == ['2']
    assert list(Path('work/pictures').glob('features_000002.png'))
    assert sum('eval/knn/top1' in line for line in read_metrics('work')) == 2


def test_the_start_says_what_the_run_is_and_the_end_what_came_of_it(run, capfd):
    status = main.main(['--config=tiny.py', '--workdir=work', '--config.checkpoint.every_steps=1'])
    lines = capfd.readouterr().out.splitlines()
    assert status == 0
    start = dict(line.split(maxsplit=1) for line in lines[: lines.index('compiling the step …')])
    assert start['config'] == 'tiny.py: simmim'
    assert start['model'].startswith('ViT, 1 blocks of width 16, patches of 8x8; ')
    assert start['data'] == 'embedded, train: 64 images, 10 classes; seen at 32x32 pixels'
    assert start['length'] == '2 steps of 8 images, 0.25 epochs'
    assert start['saves'] == 'every 1 steps, every 10 minutes and at the end'
    assert start['starts'] == 'from random parameters' and len(start) < 11
    assert all(len(line) < 80 for line in lines if not line.startswith('step'))
    done = [line for line in lines if line.startswith('done: knn/top1 ')]
    assert len(done) == 1 and '(at first ' in done[0] and done[0].endswith('in work')


def test_the_whole_config_is_printed_where_it_is_asked_for(run, capfd):
    capfd.readouterr()
    assert main.main(['--config=tiny.py', '--print_config', '--config.seed=7']) == 0
    printed = capfd.readouterr().out
    assert 'seed: 7' in printed and 'weight_decay: 0.05' in printed
    assert not Path('runs').exists()


def test_as_a_real_command(tmp_path):
    """One sentence and status 2 from the interpreter itself, too."""
    (tmp_path / 'tiny.py').write_text(CONFIG)
    result = subprocess.run(
        [sys.executable, '-m', 'mim_jax.main', '--config=tiny.py', '--config.seeed=1'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == 'error: config.seeed: there is no such key; did you mean seed?\n'
    assert not (tmp_path / 'runs').exists()
