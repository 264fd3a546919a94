"""Runs beside each other, whatever is in their folders: a table, JSON, a picture."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mim_jax import integrity, layout, provenance, remote_lock, storage, work_directory
from mim_jax.runs import __main__ as command
from mim_jax.runs import compared, found


def config(**changes):
    base = {'seed': 0, 'data': {'batch_size': 8}, 'model': {'depth': 2}}
    base['objective'] = {'name': 'mae', 'masking': {'name': 'random', 'ratio': 0.75}}
    return {**base, 'train': {'total_steps': 4}, 'log': {'every_steps': 1}, **changes}


def checkpoint(workdir, step, record=None):
    folder = layout.checkpoints(workdir) / str(step)
    folder.mkdir(parents=True)
    stated = {'custom_metadata': record or {}, 'commit_timestamp_nsecs': 86_400_000_000_000}
    (folder / integrity.WHOLE).write_text(json.dumps(stated))
    (folder / 'array').write_bytes(b'1234')
    integrity.seal(folder)
    return folder


@pytest.fixture
def make(tmp_path):
    """Function (name, *checkpoints, lines=…, **config) -> a work directory below runs."""

    def call(name, *steps, lines=(), **changes):
        workdir = tmp_path / 'runs' / name
        workdir.mkdir(parents=True)
        (workdir / layout.CONFIG_FILE).write_text(json.dumps(config(**changes)))
        text = ''.join(json.dumps(line) + '\n' for line in lines)
        (workdir / 'metrics.jsonl').write_text(text)
        for step in steps:
            checkpoint(workdir, step)
        return workdir

    return call


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Function (*arguments) -> status, standard output, standard error, in an 80-column terminal
    at the folder that has the runs.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '80')

    def run(*arguments):
        capsys.readouterr()
        status = command.main(list(arguments))
        return status, *capsys.readouterr()

    return run


LINES = [
    {'step': 0, 'eval/knn/top1': 0.1},
    {'step': 2, 'train/loss': 0.5},
    {'step': 4, 'train/loss': 0.25},
    {'step': 4, 'eval/knn/top1': 0.5, 'eval/knn/top5': 0.75},
]


def rows(text):
    """Of every run the cells after its name, by it."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith(' ')]
    return {line.split('  ')[0].strip(): line.split(maxsplit=1)[1] for line in lines}


def test_states(make, call):
    make('done', 2, 4, lines=LINES)
    make('stopped', 2, lines=LINES[1:2])
    make('empty')
    make('deep/er', 2, train={'total_epochs': 1.5})
    make('hurt', 2, 4)
    (layout.checkpoints('runs/hurt') / '4' / 'array').write_bytes(b'123')
    make('gone', 2)
    (layout.checkpoints('runs/gone') / '2' / integrity.WHOLE).unlink()
    with work_directory.locked(make('busy', 2, lines=LINES[:3])):
        status, text, _ = call()
    shown = {name: ' '.join(row.split()) for name, row in rows(text).items()}
    assert status == 0 and shown == {
        'busy': 'running 4/4 knn/top1 0.1 (step 0)',
        'deep/er': 'stopped 2 of 1.5 epochs',
        'done': 'finished 4/4 knn/top1 0.5',
        'empty': 'nothing saved 0/4',
        'gone': 'damaged 0/4',
        'hurt': 'stopped 2/4',
        'stopped': 'stopped 2/4 loss 0.5',
    }
    assert 'the checkpoint of step 4 is damaged: array has 3 bytes and not 4' in text
    _, text, _ = call()
    assert rows(text)['busy'].split()[:2] == ['stopped', '2/4']


def test_no_folder_is_a_stack_trace(make, call, tmp_path):
    for number, content in enumerate((b'', b'{"seed": 1', b'\xff\xfe', b'[1]', b'[' * 99_999)):
        workdir = make(f'config{number}', 2, lines=LINES)
        (workdir / layout.CONFIG_FILE).write_bytes(content)
    (make('changes', 4) / layout.CHANGES_FILE).write_text('[' * 99_999)
    huge = make('huge', 4) / 'metrics.jsonl'
    huge.write_text('{"step": 4, "train/loss": 1' + '0' * 400 + '}\n')
    workdir = make('metrics', 4)
    lines = b'{"step": 1, "train/loss": 1}\n\xff\n{"step": "x"}\n[]\n{"step": 2, "train/loss"'
    (workdir / 'metrics.jsonl').write_bytes(lines)
    make('of_another_version', 2, train='none', hat={'brim': None})
    (make('no_config', 2) / layout.CONFIG_FILE).unlink()
    exported = tmp_path / 'runs' / 'exported'
    exported.mkdir()
    (exported / layout.CONFIG_FILE).write_text('{"model_type": "vit"}')
    status, text, _ = call('runs')
    shown = rows(text)
    assert status == 0 and all(len(line) <= 80 for line in text.splitlines())
    assert {name for name, row in shown.items() if row.startswith('damaged')} == {
        'config0',
        'config1',
        'config2',
        'config3',
        'config4',
        'no_config',
    }
    assert 'exported' not in shown
    assert shown['metrics'].split() == ['finished', '4/4', 'loss', '1']
    assert '4 damaged lines in metrics.jsonl' in text
    assert shown['huge'].split() == ['finished', '4/4', 'loss', 'inf']
    assert 'config_changes.jsonl cannot be read' in ' '.join(text.split())
    assert shown['of_another_version'].split() == ['stopped', '2']


def test_a_lengthened_run_is_not_finished(make, call):
    workdir = make('long', train={'total_epochs': 4})
    checkpoint(workdir, 4, {'total_steps': 4})
    assert rows(call()[1])['long'].split()[:2] == ['finished', '4/4']
    changes = [{'after_step': 4, 'changed': ['train.total_epochs: 2 -> 4']}]
    changes += [{'after_step': 4, 'changed': ['log.every_steps: 2 -> 4']}]
    text = ''.join(json.dumps(line) + '\n' for line in changes)
    (workdir / layout.CHANGES_FILE).write_text(text)
    assert rows(call()[1])['long'].split() == ['stopped', '4', 'of', '4', 'epochs']
    checkpoint(workdir, 8, {'total_steps': 8})
    assert rows(call()[1])['long'].split()[:2] == ['finished', '8/8']


def test_nothing_to_list(call, tmp_path):
    assert call()[0::2] == (
        2,
        'error: runs: there is no such folder; name one that has runs in it.\n',
    )
    (tmp_path / 'runs').mkdir()
    status, _, error = call()
    assert status == 2 and 'there is no run in it; `python -m mim_jax.main' in error


def test_one_run_and_several_folders(make, call):
    workdir = make('one', 4)
    make('two', 4)
    assert list(rows(call(str(workdir))[1])) == ['one']
    assert list(rows(call('runs/one', 'runs/two')[1])) == ['runs/one', 'runs/two']


def test_what_differs_is_told_in_short():
    masked = config(objective={'name': 'mae', 'masking': {'name': 'random', 'ratio': 0.5}})
    method = config(objective={'name': 'dtm', 'masking': {'name': 'grid', 'ratio': 0.75}})
    longer = config(train={'total_steps': 9}, log={'every_steps': 7}, new=1)
    # More than half of the runs are as `config`; {} is one that cannot be read.
    assert compared.differences([config(), config(), config(), masked, {}, method, longer]) == [
        {},
        {},
        {},
        {'ratio': '0.5'},
        {},
        {'objective': 'dtm', 'masking': 'grid'},
        {'total_steps': '9', 'every_steps': '7'},
    ]
    # Of two there is no usual one.
    assert compared.differences([config(), masked]) == [{'ratio': '0.75'}, {'ratio': '0.5'}]
    assert compared.differences([{}, {}]) == [{}, {}]


def test_short_names_are_unique():
    names = ['model.depth', 'objective.decoder.depth', 'objective.name', 'a.objective.name', 'x.y']
    assert compared.shortened(names) == {
        'model.depth': 'model.depth',
        'objective.decoder.depth': 'decoder.depth',
        'objective.name': 'objective',
        'a.objective.name': 'a.objective',
        'x.y': 'y',
    }


def test_many_differences_take_two_lines_at_most(make, call):
    for name in 'ab':
        make(name, 4, data={f'a_field_{i}': f'{name}_value_{i}' for i in range(20)})
    lines = call()[1].splitlines()
    assert len(lines) == 1 + 2 * 3 and all(len(line) <= 80 for line in lines)
    given = lines[2].count('=') + lines[3].count('=')
    assert lines[3].endswith(f'and {20 - given} more (--json)')
    (first, _) = json.loads(call('--json')[1])
    assert len(first['differences']) == 20


def test_json_has_all_of_it(make, call):
    make('a', 2, 4, lines=LINES)
    status, text, _ = call('--json')
    assert status == 0 and json.loads(text) == [
        {
            'name': 'a',
            'workdir': 'runs/a',
            'state': 'finished',
            'step': 4,
            'length': 4,
            'saved_steps': [2, 4],
            'figures': {
                'eval/knn/top1': {'step': 4, 'value': 0.5},
                'eval/knn/top5': {'step': 4, 'value': 0.75},
                'train/loss': {'step': 4, 'value': 0.25},
            },
            'differences': {},
            'notes': [],
        }
    ]


def test_curves_of_several_runs(make, call, tmp_path):
    make('a', lines=LINES)
    make('b', lines=[{'step': i, 'train/loss': 1 / (i + 1)} for i in range(50)])
    out = tmp_path / 'new' / 'curves.png'
    status, text, _ = call('--plot=train/loss,eval/knn/top1', f'--out={out}')
    assert status == 0 and text == f'wrote {out}\n'
    picture = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    assert picture.shape[1] == 2 * 5.5 * 120
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the first two of Okabe and Ito
        assert (np.abs(picture.astype(int) - color).max(axis=2) < 3).sum() > 50
    status, _, error = call('--plot=train/los', f'--out={out}')
    assert (
        status == 2 and 'no run has it; there are eval/knn/top1, eval/knn/top5, train/loss' in error
    )
    assert 'must end in one of .png' in call('--plot=train/loss', '--out=curves.doc')[2]
    (tmp_path / 'folder.png').mkdir()
    for out in (tmp_path / 'folder.png', tmp_path / ('n' * 300) / 'curves.png'):
        status, _, error = call('--plot=train/loss', f'--out={out}')
        assert status == 2 and f'--out={out} cannot be written: ' in error


def test_what_made_a_checkpoint(make, call):
    workdir = make('a', init={'weights': 'runs/b'})
    written = found.read(workdir, name='a').config
    prints = {'data': 'ddd', 'init': 'iii'}
    record = provenance.record(written, total_steps=4, fingerprints=prints)
    checkpoint(workdir, 2, record)
    folder = checkpoint(workdir, 4, {**record, 'config': 'other', 'packages': {'jax': '9.9'}})
    checkpoint(workdir, 6)
    status, text, _ = call('--describe=runs/a', '--step=2')
    lines = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert status == 0 and text.startswith('runs/a, step 2 of 4\n')
    assert lines['config'] == f'SHA-256 {provenance.digest(written)[:16]}… (that of config.json)'
    assert lines['saved'] == '1970-01-02 00:00:00 UTC'
    assert lines['data'] == 'SHA-256 ddd…' and lines['init'] == 'SHA-256 iii… (runs/b)'
    assert lines['packages'].startswith('jax ') and 'orbax-checkpoint ' in lines['packages']
    text = call('--describe=runs/a', '--step=4')[1]
    assert 'jax 9.9' in text and 'config.json has another now: config_changes.jsonl' in text
    (workdir / layout.CONFIG_FILE).unlink()
    assert 'config.json cannot be read' in call('--describe=runs/a', '--step=2')[1]
    assert 'does not say what made it' in call('--describe=runs/a')[2]
    assert 'no checkpoint of step 9, only of [2, 4, 6]' in call('--describe=runs/a', '--step=9')[2]
    assert 'there is no checkpoint' in call('--describe=runs')[2]
    (folder / 'array').write_bytes(b'1235')
    assert 'array has other contents' in call('--describe=runs/a', '--step=4')[2]


def test_it_is_light():
    code = 'import sys, mim_jax.runs.__main__; print(*sys.modules)'
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert not {'jax', 'flax', 'matplotlib'} & set(loaded.stdout.split())


def test_runs_in_an_object_store(store):
    for name in ('b', 'deep/a'):
        storage.write_whole(store / name / layout.CONFIG_FILE, json.dumps(config()))
        storage.write_whole(store / name / 'metrics.jsonl', '{"step": 1, "train/loss": 2.0}\n')
    with remote_lock.locked(store / 'b' / layout.LOCK_FILE):
        seen = [(run.name, run.state, run.step) for run in found.find([str(store)])]
    assert seen == [('b', 'running', 1), ('deep/a', 'nothing saved', 1)]
