"""What is no work directory is told in one sentence, and left as it is."""

import errno
import fcntl
import json
import os
import shutil

import pytest

from mim_jax import layout, restoring, work_directory
from mim_jax.errors import UserError
from mim_jax.experiment import Experiment, TrainConfig
from mim_jax.preservation import CheckpointConfig
from mim_jax.warm_start import InitConfig

HUGGING_FACE = json.dumps({'model_type': 'vit', 'hidden_size': 768, 'architectures': ['ViTModel']})


def test_a_claimed_directory_says_its_run(tmp_path):
    workdir = tmp_path / 'deep' / 'work'
    work_directory.claim(workdir, Experiment(seed=5))
    work_directory.claim(workdir, Experiment(seed=5))
    assert restoring.read_config(workdir) == Experiment(seed=5)
    with pytest.raises(UserError, match='seed: 5 -> 6'):
        work_directory.claim(workdir, Experiment(seed=6))


@pytest.mark.parametrize('workdir', ['file', 'file/work', 'file/deep/work'])
def test_a_file_is_no_place_for_a_run(workdir, tmp_path):
    (tmp_path / 'file').write_text('kept')
    with pytest.raises(UserError, match='nothing can be written in .*file is not a directory'):
        work_directory.claim(tmp_path / workdir, Experiment())
    assert (tmp_path / 'file').read_text() == 'kept'


def test_no_other_store_than_googles_holds_a_run():
    with pytest.raises(UserError, match='s3://mine/x: a work directory lies on a file system, or'):
        work_directory.claim('s3://mine/x', Experiment())


@pytest.mark.parametrize('content', [HUGGING_FACE, '[1, 2]', '"text"', '{"model": "vit"}'])
def test_a_config_that_is_not_of_a_run(content, tmp_path):
    path = tmp_path / work_directory.CONFIG_FILE
    path.write_text(content)
    for read in (
        restoring.read_config,
        work_directory.load_encoder,
        lambda workdir: work_directory.claim(workdir, Experiment()),
    ):
        with pytest.raises(UserError, match='not a work directory of .*mim_jax.weights import'):
            read(tmp_path)
    assert path.read_text() == content


def test_a_damaged_config(tmp_path):
    for content in (b'{"seed": 1', b'\xff\xfe', b'[' * 99_999):
        (tmp_path / work_directory.CONFIG_FILE).write_bytes(content)
        with pytest.raises(UserError, match='config.json cannot be read'):
            restoring.read_config(tmp_path)


def test_fields_of_later_versions_are_at_their_defaults(tmp_path):
    work_directory.claim(tmp_path, Experiment(seed=5))
    path = tmp_path / work_directory.CONFIG_FILE
    older = json.loads(path.read_text())
    del older['init'], older['train']['whole_batches']
    path.write_text(json.dumps(older))
    work_directory.check(tmp_path, Experiment(seed=5))
    other = Experiment(seed=5, train=TrainConfig(whole_batches=True))
    with pytest.raises(UserError, match='whole_batches: False -> True'):
        work_directory.check(tmp_path, other)
    path.write_text(json.dumps({**older, 'hat': 1}))
    with pytest.raises(UserError, match='config this version cannot read .*hat'):
        work_directory.check(tmp_path, Experiment(seed=5))


def test_weights_may_have_moved_but_not_come_later(tmp_path):
    started = Experiment(init=InitConfig(weights='here'))
    work_directory.claim(tmp_path / 'started', started)
    work_directory.check(tmp_path / 'started', Experiment(init=InitConfig(weights='there')))
    work_directory.claim(tmp_path / 'fresh', Experiment())
    with pytest.raises(UserError, match='init.weights: None -> here'):
        work_directory.check(tmp_path / 'fresh', started)


def test_what_a_run_goes_on_with_is_recorded(tmp_path):
    work_directory.claim(tmp_path, Experiment())
    assert not (tmp_path / work_directory.CHANGES_FILE).exists()
    later = Experiment(checkpoint=CheckpointConfig(keep=5))
    work_directory.claim(tmp_path, later, after_step=7)
    work_directory.claim(tmp_path, later, after_step=8)
    (line,) = (tmp_path / work_directory.CHANGES_FILE).read_text().splitlines()
    assert json.loads(line) == {'after_step': 7, 'changed': ['checkpoint.keep: 2 -> 5']}
    assert restoring.read_config(tmp_path) == later


def test_checkpoints_without_a_config_are_of_no_run(tmp_path):
    (tmp_path / 'checkpoints' / '7').mkdir(parents=True)
    with pytest.raises(UserError, match='has checkpoints but no config.json'):
        work_directory.claim(tmp_path, Experiment())


def test_a_work_directory_is_for_one_run_at_a_time(tmp_path):
    workdir = tmp_path / 'run'
    with work_directory.locked(workdir):
        with (
            pytest.raises(UserError, match=rf'run is in use by process {os.getpid()} on .*: stop'),
            work_directory.locked(workdir),
        ):
            pass
        with work_directory.locked(tmp_path / 'other'):
            pass
    with work_directory.locked(workdir):
        pass


def test_a_lock_held_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    with open(tmp_path / work_directory.LOCK_FILE, 'w') as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        waits = []

        def wait(seconds):
            waits.append(seconds)
            fcntl.flock(looking, fcntl.LOCK_UN)

        monkeypatch.setattr(work_directory.time, 'sleep', wait)
        with work_directory.locked(tmp_path):
            assert len(waits) == 1


def test_a_run_says_after_which_step_it_was_lengthened(tmp_path):
    assert layout.lengthened_after(tmp_path) == 0
    work_directory.claim(tmp_path, Experiment())
    for keep, steps, after in ((5, None, 3), (5, 9, 4), (6, 9, 7), (6, 12, 8), (2, 12, 10)):
        checkpoint = CheckpointConfig(keep=keep)
        run = Experiment(checkpoint=checkpoint, train=TrainConfig(total_steps=steps))
        work_directory.claim(tmp_path, run, after_step=after, extend=True)
    assert layout.lengthened_after(tmp_path) == 8
    for text in ('{', '[]', '{"after_step": 1}', '[' * 99_999):
        (tmp_path / work_directory.CHANGES_FILE).write_text(text)
        with pytest.raises(UserError, match='config_changes.jsonl cannot be read'):
            layout.lengthened_after(tmp_path)


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(work_directory.fcntl, 'flock', fails)
    with work_directory.locked(tmp_path / 'run'):
        assert 'cannot be locked here (Function not implemented)' in caplog.text


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_cannot_be_written_any_more_is_one_sentence(number, tmp_path):
    workdir = tmp_path / 'run'
    with (
        pytest.raises(UserError, match=r'metrics.jsonl: nothing more .*; there is no checkpoint\.'),
        work_directory.locked(workdir),
    ):
        raise OSError(number, os.strerror(number), str(workdir / 'metrics.jsonl'))
    with pytest.raises(FileNotFoundError), work_directory.locked(workdir):
        raise FileNotFoundError(errno.ENOENT, 'of something else')


def test_a_work_directory_that_is_gone_is_one_sentence(tmp_path):
    workdir = tmp_path / 'run'
    with (
        pytest.raises(UserError, match='run is gone: it was deleted or moved while'),
        work_directory.locked(workdir),
    ):
        shutil.rmtree(workdir)
        (workdir / 'metrics.jsonl').read_text()
