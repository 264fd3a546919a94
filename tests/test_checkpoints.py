"""Checkpoints that were damaged: noticed, named, set aside; the newest intact one is used."""

import json
import shutil

import jax
import numpy as np
import pytest

from mim_jax import checkpoints, experiment, integrity, logs, work_directory
from mim_jax.errors import UserError
from mim_jax.trainer import Trainer


def train(path):
    """A run of four steps with a checkpoint after each second one."""
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
    run = experiment.from_config(config)
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


def test_no_intact_checkpoint_is_one_sentence(workdir):
    for step in (2, 4):
        (workdir / f'checkpoints/{step}/_CHECKPOINT_METADATA').unlink()
    with pytest.raises(UserError, match='all of its checkpoints are damaged .*step 2: '):
        train(workdir)
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'2', '4'}


def test_a_directory_that_is_gone_is_one_sentence(tmp_path):
    checkpoints.check_there(tmp_path)
    with pytest.raises(UserError, match='work/checkpoints is gone: it was deleted or moved while'):
        checkpoints.check_there(tmp_path / 'work/checkpoints')


def test_what_the_system_said_is_found_in_what_tensorstore_says():
    error = ValueError(f"OUT_OF_RANGE: Error writing {'x' * 300} [os_error_code='28']")
    assert checkpoints._reason(error) == 'No space left on device'
    assert checkpoints._reason(ValueError('first\nsecond')) == 'first'
    assert checkpoints._reason(ValueError()) == 'ValueError'
