"""What made a checkpoint is kept inside of it; a run goes on longer only where that is wanted."""

import json
import subprocess

import pytest

from mim_jax import checkpoints, experiment, layout, provenance, work_directory
from mim_jax.errors import UserError
from mim_jax.logs import read_metrics
from mim_jax.trainer import Trainer


def train(path, *, steps, extend=False):
    config = experiment.default_config('simmim')
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=16, num_test=8)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, mask_token=True)
    config.optimizer.warmup_steps = 1
    config.train.total_steps = steps
    config.mesh.data = 1
    config.eval.evaluators = ()
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=1)
    run = experiment.from_config(config)
    trainer = Trainer(run, path, extend=extend)
    work_directory.claim(path, run, after_step=trainer.found.step or 0, extend=extend)
    trainer.fingerprints['data'] = 'of the images'
    trainer.train()
    return trainer


def metric(path, name):
    return {line['step']: line[name] for line in read_metrics(path) if name in line}


@pytest.mark.slow
def test_a_finished_run_is_lengthened_on_purpose(tmp_path, capfd):
    first = train(tmp_path, steps=4)
    before = metric(tmp_path, 'train/loss')
    with pytest.raises(
        UserError, match='total_steps: 4 -> 8.*lengthen it on purpose with --extend'
    ):
        train(tmp_path, steps=8)
    with pytest.raises(UserError, match='run of 4 steps, and train.total_\\* makes 3; give more'):
        train(tmp_path, steps=3, extend=True)
    capfd.readouterr()

    train(tmp_path, steps=8, extend=True)
    assert 'lengthened from 4 to 8 steps' in capfd.readouterr().out
    losses = metric(tmp_path, 'train/loss')
    assert sorted(losses) == list(range(1, 9))
    assert {step: losses[step] for step in before} == before
    # From there on the learning rate is that of a run of 8 steps.
    fresh = tmp_path / 'fresh'
    train(fresh, steps=8)
    rates, whole = (metric(path, 'train/learning_rate') for path in (tmp_path, fresh))
    assert [rates[step] for step in (5, 6, 7, 8)] == [whole[step] for step in (5, 6, 7, 8)]
    assert rates[4] < rates[5] and rates[3] < whole[3]
    (line,) = (tmp_path / work_directory.CHANGES_FILE).read_text().splitlines()
    assert json.loads(line) == {'after_step': 4, 'changed': ['train.total_steps: 4 -> 8']}
    assert layout.read_config(tmp_path)['train']['total_steps'] == 8
    train(tmp_path, steps=8, extend=True)  # the same command again has nothing to do
    assert 'are done already' in capfd.readouterr().out

    made = [
        provenance.read(checkpoints.directory(tmp_path) / str(step))
        for step in checkpoints.saved_steps(tmp_path)
    ]
    assert [each['total_steps'] for each in made] == [4, 8]
    assert made[0]['config'] == provenance.digest(work_directory.as_dict(first.run))
    assert made[1]['config'] == provenance.digest(layout.read_config(tmp_path))
    assert made[0]['fingerprints'] == {'data': 'of the images'}


def test_only_the_length_may_differ(tmp_path):
    run = experiment.Experiment()
    with pytest.raises(UserError, match='--extend: there is no run in'):
        work_directory.check(tmp_path, run, extend=True)
    work_directory.claim(tmp_path, run)
    longer = experiment.TrainConfig(total_steps=8)
    changed = work_directory.check(tmp_path, experiment.Experiment(train=longer), extend=True)
    assert changed == ['train.total_steps: None -> 8']
    other = experiment.Experiment(seed=1, train=longer)
    with pytest.raises(UserError, match='seed: 0 -> 1') as told:
        work_directory.check(tmp_path, other, extend=True)
    assert 'total_steps' not in str(told.value)
    with pytest.raises(UserError) as told:
        work_directory.check(tmp_path, other)
    assert '--extend' not in str(told.value)


def record(**changes):
    found = provenance.record({'seed': 0}, total_steps=4, fingerprints={'data': 'd'})
    return {**found, **changes}


def test_a_run_that_resumes_is_told_what_is_new():
    now = record()
    assert provenance.news(None, now) == []
    assert provenance.news(json.loads(json.dumps(record())), now) == []
    older = record(packages={**now['packages'], 'jax': '0.1'}, config='other')
    (line,) = provenance.news(older, now)
    assert line.endswith(f'devices: packages.jax: 0.1 -> {now["packages"]["jax"]}')
    (line,) = provenance.news(record(devices={**now['devices'], 'count': 999}), now)
    assert 'devices.count: 999 -> ' in line
    assert provenance.news({'total_steps': 4}, now)  # of a version that kept less


def test_the_commit_is_that_of_the_code(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ('-c', 'user.name=n', '-c', 'user.email=e@x')
        subprocess.run(['git', '-C', tmp_path, *settings, *arguments], check=True)

    package = tmp_path / 'mim_jax'
    package.mkdir()
    file = package / 'provenance.py'
    file.write_text('first')
    monkeypatch.setattr(provenance, '__file__', str(file))
    assert provenance.commit() is None
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'one')
    first = provenance.commit()
    assert len(first) == 12
    file.write_text('second')
    assert provenance.commit() == f'{first}-dirty'
    inner = tmp_path / 'venv' / 'mim_jax'  # installed below a repository of something else
    inner.mkdir(parents=True)
    monkeypatch.setattr(provenance, '__file__', str(inner / 'provenance.py'))
    assert provenance.commit() is None


def test_what_is_no_record_is_none(tmp_path):
    assert provenance.read(tmp_path) is None
    for content in ('', '[]', '{"custom_metadata": {}}', '{"custom_metadata": null}'):
        (tmp_path / '_CHECKPOINT_METADATA').write_text(content)
        assert provenance.read(tmp_path) is None and provenance.saved_at(tmp_path) is None
