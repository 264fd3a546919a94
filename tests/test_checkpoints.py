"""Checkpoints that were damaged: noticed, named, set aside; the newest intact one is used."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mim_jax import checkpoints, experiment, integrity, logs, work_directory
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.preservation import CheckpointConfig
from mim_jax.train_step import TrainState
from mim_jax.trainer import Trainer


def config_of_four_steps():
    """With a checkpoint after each second one."""
    config = experiment.default_config('simmim')
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=16, num_test=8)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, mask_token=True)
    config.train.total_steps = 4
    config.mesh.data = 1
    config.checkpoint.every_steps = 2
    config.eval.evaluators = ()
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=1)
    return config


def train(path):
    run = experiment.from_config(config_of_four_steps())
    trainer = Trainer(run, path)
    work_directory.claim(path, run)
    trainer.train()
    return trainer


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'whole'
    train(path)
    return path


@pytest.fixture
def workdir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'run')


def files(folder):
    names = sorted(path for path in folder.rglob('*') if path.is_file())
    return [path for path in names if path.name != integrity.FILE]


def test_every_checkpoint_is_sealed_and_intact(workdir):
    for step in (2, 4):
        stated = json.loads((workdir / f'checkpoints/{step}' / integrity.FILE).read_text())
        folder = workdir / f'checkpoints/{step}'
        assert sorted(stated) == [path.relative_to(folder).as_posix() for path in files(folder)]
        assert len(stated) > 10 and integrity.damage(folder) is None
    assert checkpoints.find(workdir) == checkpoints.Found(4, {})


def test_a_changed_byte_of_any_file_is_noticed(workdir):
    folder = workdir / 'checkpoints/4'
    for path in files(folder):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        found = checkpoints.find(workdir)
        assert found.step == 2 and path.name in found.damaged[4]
        path.write_bytes(content[:-1])
        assert 'bytes and not' in checkpoints.find(workdir).damaged[4]
        path.unlink()
        assert 'is missing' in checkpoints.find(workdir).damaged[4]
        path.write_bytes(content)
    assert checkpoints.find(workdir).step == 4


def test_an_empty_folder_is_no_checkpoint(workdir):
    (workdir / 'checkpoints/9').mkdir()
    found = checkpoints.find(workdir)
    assert found.step == 4 and found.damaged == {9: '_CHECKPOINT_METADATA is missing'}


def test_a_damaged_checkpoint_is_kept_aside_and_the_run_goes_on_from_the_one_before(
    whole, workdir, capsys
):
    data = max(files(workdir / 'checkpoints/4/variables'), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    variables, step = checkpoints.restore_variables(workdir)
    assert step == 2
    with pytest.raises(UserError, match=f'step 4 is damaged: .*{data.name} has other contents'):
        checkpoints.restore_variables(workdir, step=4)
    capsys.readouterr()
    train(workdir)
    said = capsys.readouterr().out
    assert 'the checkpoint of step 4 is damaged' in said and 'resuming after step 2 of 4' in said
    assert (workdir / 'checkpoints/4.damaged').is_dir() and (workdir / 'checkpoints/4').is_dir()
    expected, _ = checkpoints.restore_variables(whole)
    found, step = checkpoints.restore_variables(workdir)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    losses = [line['train/loss'] for line in logs.read_metrics(workdir) if 'train/loss' in line]
    theirs = [line['train/loss'] for line in logs.read_metrics(whole) if 'train/loss' in line]
    assert losses == theirs


def test_damage_without_checksums_is_one_sentence(workdir):
    shutil.rmtree(workdir / 'checkpoints/2')
    (workdir / 'checkpoints/4' / integrity.FILE).unlink()
    for path in files(workdir / 'checkpoints/4/variables'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match='step 4 cannot be restored .*before checksums were'):
        checkpoints.restore_variables(workdir)


def test_files_are_called_intact_only_where_they_are(workdir):
    with pytest.raises(UserError, match='its files are intact'), checkpoints._readable(workdir, 4):
        raise ValueError('of memory')
    files(workdir / 'checkpoints/4/variables')[0].unlink()
    with pytest.raises(UserError, match='damaged: .* missing'), checkpoints._readable(workdir, 4):
        raise ValueError('of a file')


def test_the_newest_intact_one_before_a_step(workdir, caplog):
    assert checkpoints.newest_intact(workdir, before=4) == 2
    assert checkpoints.newest_intact(workdir, before=2) is None
    (workdir / 'checkpoints/2/_CHECKPOINT_METADATA').unlink()
    with pytest.raises(UserError, match='all of its checkpoints before step 4 are damaged'):
        checkpoints.newest_intact(workdir, before=4)
    shutil.copytree(workdir / 'checkpoints/4', workdir / 'checkpoints/1')
    assert checkpoints.newest_intact(workdir, before=4) == 1
    assert 'the checkpoint of step 2 is damaged' in caplog.text


def test_checksums_that_are_none(tmp_path):
    (tmp_path / integrity.WHOLE).write_text('{}')
    for stated in ('{"x": [1]}', '{"x": 1}', '[1]', '{"x"', '[' * 99_999):
        (tmp_path / integrity.FILE).write_text(stated)
        assert integrity.damage(tmp_path) == 'checksums.json cannot be read'


def test_what_another_process_saved_meanwhile_is_left_alone(workdir):
    trainer = Trainer(experiment.from_config(config_of_four_steps()), workdir)
    shutil.copytree(workdir / 'checkpoints/4', workdir / 'checkpoints/5')
    lines = (workdir / 'metrics.jsonl').read_bytes()
    with pytest.raises(UserError, match='another process saved there meanwhile; start the same'):
        trainer.train()
    assert (workdir / 'metrics.jsonl').read_bytes() == lines


def test_no_intact_checkpoint_is_one_sentence(workdir):
    for step in (2, 4):
        (workdir / f'checkpoints/{step}/_CHECKPOINT_METADATA').unlink()
    with pytest.raises(UserError, match='all of its checkpoints are damaged .*step 2: '):
        train(workdir)
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'2', '4'}


def test_milestones_stay_where_a_run_is_lengthened(tmp_path):
    config = CheckpointConfig(keep=3, milestone_percent=25)

    def state(step):
        return TrainState(step, {'params': np.zeros(1)}, {'moment': np.zeros(1)}, refused=0)

    def save(steps, *, total, keep=3):
        opened = checkpoints.Checkpoints(
            tmp_path,
            dataclasses.replace(config, keep=keep),
            Clock(batch_size=1, total_steps=total),
            made_by={'total_steps': total},
        )
        for step in steps:
            opened.save(step, state(step), {})
        opened.close()
        return checkpoints.saved_steps(tmp_path)

    assert save(range(1, 9), total=8) == [2, 4, 6, 7, 8]
    assert save([9], total=16) == [2, 4, 6, 7, 8, 9]
    # Fewer are to be kept, by a run that resumes.
    assert save(range(10, 17), total=16, keep=1) == [2, 4, 6, 8, 12, 16]


def test_a_directory_that_is_gone_is_one_sentence(tmp_path):
    checkpoints.check_there(tmp_path)
    with pytest.raises(UserError, match='work/checkpoints is gone: it was deleted or moved while'):
        checkpoints.check_there(tmp_path / 'work/checkpoints')


def test_what_the_system_said_is_found_in_what_tensorstore_says():
    error = ValueError(f"OUT_OF_RANGE: Error writing {'x' * 300} [os_error_code='28']")
    assert checkpoints._reason(error) == 'No space left on device'
    assert checkpoints._reason(ValueError('first\nsecond')) == 'first'
    assert checkpoints._reason(ValueError()) == 'ValueError'
