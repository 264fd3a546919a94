"""`python -m mim_jax.evaluate` on a run's checkpoints and on weights."""

import json
import re
from pathlib import Path

import pytest

from mim_jax import experiment, logs, work_directory
from mim_jax.evaluate import __main__ as command
from mim_jax.evaluate import report, subjects
from mim_jax.trainer import Trainer


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A finished run of a classifier with two checkpoints, judged by itself at its end."""
    config = experiment.default_config('classification')
    config.data.update(image_size=(32, 32), batch_size=16)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=64, num_test=48)
    config.model.update(patch_size=(8, 8), width=32, depth=1, heads=2)
    config.objective.head_scale = 1.0
    config.train.total_steps = 4
    config.optimizer.update(learning_rate=1e-2, scaling='none', warmup_percent=0.0)
    config.mesh.data = 1
    config.checkpoint.every_steps = 2
    config.eval.evaluators = ('knn', 'accuracy')
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=2)
    run = experiment.from_config(config)
    path = tmp_path_factory.mktemp('runs') / 'run'
    trainer = Trainer(run, path)
    work_directory.claim(path, run)
    trainer.train()
    return path


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """JAX runs already: there is nothing to join."""
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')


def evaluate(*arguments):
    return command.main([str(argument) for argument in arguments])


def test_checkpoints_are_judged_as_the_run_judged_itself(workdir, tmp_path, capsys):
    config_before = (workdir / 'config.json').read_bytes()
    assert evaluate(f'--workdir={workdir}', '--steps=all', f'--out={tmp_path}') == 0
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['of'] == str(workdir) and set(results['evaluators']) == {'knn', 'accuracy'}
    said = [line for line in logs.read_metrics(workdir) if 'eval/knn/top1' in line]
    by_run = {line['step']: line for line in said}
    assert set(by_run) == {0, 4}
    for name, entry in results['evaluators'].items():
        assert set(entry['steps']) == {'2', '4'}
        for metric, value in entry['steps']['4'].items():
            assert value == pytest.approx(by_run[4][f'eval/{name}/{metric}'], abs=1e-5)
    table = capsys.readouterr().out
    assert f'| {workdir} | step 2 | step 4 |' in table and '| accuracy/loss |' in table
    assert (tmp_path / 'results.md').read_text() in table
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        'confusion_accuracy.png',
        'curves.png',
        'features_000004.png',
        'results.json',
        'results.md',
    }
    assert (workdir / 'config.json').read_bytes() == config_before


def test_later_figures_join_those_of_the_same_settings(workdir, tmp_path):
    out = f'--out={tmp_path}'
    assert evaluate(f'--workdir={workdir}', '--steps=2', '--evaluators=knn', out) == 0
    assert evaluate(f'--workdir={workdir}', '--evaluators=accuracy', out) == 0
    assert evaluate(f'--workdir={workdir}', '--steps=4', '--evaluators=knn', out) == 0
    results = report.Results.read(tmp_path, of=str(workdir))
    assert results.steps == [2, 4] and set(results.values('knn', 'top1')) == {2, 4}
    assert set(results.values('accuracy', 'loss')) == {4}
    fields = '--config.eval.knn.k=(3,)'
    assert evaluate(f'--workdir={workdir}', '--evaluators=knn', fields, out) == 0
    results = report.Results.read(tmp_path, of=str(workdir))
    assert set(results.values('knn', 'top1')) == {4}  # those of other neighbours are gone
    assert results.evaluators['knn']['settings']['section']['k'] == [3]
    assert set(results.values('accuracy', 'loss')) == {4}


def test_weights_are_judged_as_the_run_they_come_from(workdir, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        'from mim_jax.experiment import default_config\n\n\n'
        'def get_config():\n'
        "    config = default_config('mae')\n"
        '    config.data.update(image_size=(40, 40), batch_size=16, mean=(0.1,) * 3)\n'
        "    config.data.crop.mode = 'none'\n"
        '    config.data.source.update(num_train=64, num_test=48)\n'
        "    config.eval.evaluators = ('knn', 'health')\n"
        '    config.log.num_pictures = 2\n'
        '    return config\n'
    )
    flags = f'--weights={workdir}', f'--config={config}', f'--out={tmp_path / "out"}'
    assert evaluate(*flags) == 0
    assert evaluate(f'--workdir={workdir}', '--evaluators=knn', f'--out={tmp_path}') == 0
    mine = report.Results.read(tmp_path / 'out', of=str(workdir))
    theirs = report.Results.read(tmp_path, of=str(workdir))
    assert mine.values('knn', 'top1')[0] == pytest.approx(theirs.values('knn', 'top1')[4])
    assert mine.values('health', 'rankme')[0] > 1
    assert (tmp_path / 'out' / 'features_000000.png').exists()


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        (['--steps=3'], r'has checkpoints of \[2, 4\], not of \[3\]'),
        (['--steps=last'], "write 'all', or numbers"),
        (['--evaluators=knm'], "'knm' is none of .*knn"),
        (['--config.model.depth=2'], 'changes nothing but the sections data and eval'),
        (['--config.eval.batch_size=7', '--config.eval.knn.k=0'], 'k'),
    ],
)
def test_mistakes_are_one_sentence(workdir, tmp_path, capsys, flags, sentence):
    out = tmp_path / 'out'
    assert evaluate(f'--workdir={workdir}', f'--out={out}', *flags) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith('error: ') and len(told.splitlines()) == 1
    assert re.search(sentence, told)
    assert not out.exists()


def test_a_folder_of_something_else_is_not_overwritten(workdir, tmp_path, capsys):
    (tmp_path / 'results.json').write_text('{"mine": 1}')
    assert evaluate(f'--workdir={workdir}', f'--out={tmp_path}') == 2
    assert 'is no file of mim_jax.evaluate' in capsys.readouterr().err
    assert (tmp_path / 'results.json').read_text() == '{"mine": 1}'


def test_results_of_another_run_are_not_overwritten(workdir, tmp_path, capsys):
    (tmp_path / 'results.json').write_text('{"of": "runs/other", "evaluators": {}}')
    assert evaluate(f'--workdir={workdir}', f'--out={tmp_path}') == 2
    assert 'is of runs/other, not of' in capsys.readouterr().err
    assert report.Results.read(tmp_path, of=str(Path('runs/other').resolve())).evaluators == {}


def test_a_work_directory_without_a_checkpoint(workdir, tmp_path, capsys):
    (tmp_path / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
    assert evaluate(f'--workdir={tmp_path}') == 2
    assert 'there is no checkpoint; train the run' in capsys.readouterr().err


@pytest.mark.parametrize('judges', [True, False])
def test_judges_are_given_the_frozen_networks(monkeypatch, judges):
    """No checkpoint holds them; others look at the encoder alone, and need no file to be there."""

    class Parts:
        def __init__(self):
            self.judges = judges

        def run(self, variables):
            return {f'eval/judge/{name}': 0.0 for name in variables}

        def pretrained(self):
            return {'teacher': 1}

    monkeypatch.setattr(subjects.Subject, '_placed', lambda self, step: self.variables(step))
    subject = subjects.Subject('run', Parts(), Parts(), (1,), lambda step: {'params': 2})
    expected = {'judge/params', 'judge/teacher'} if judges else {'judge/params'}
    assert set(subject.evaluate(1)) == expected
