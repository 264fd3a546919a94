"""`python -m mim_jax.zoo`: what it runs, what it leaves, what it says of failures."""

import json
import re
from pathlib import Path

import pytest

from mim_jax import planned
from mim_jax.errors import UserError
from mim_jax.zoo import __main__ as zoo
from mim_jax.zoo.entries import Entry

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def stubs(monkeypatch, tmp_path):
    """A zoo of four entries whose runs are done at once; those in `broken` fail. What was run, and
    what the page was given.
    """
    broken, ran, given = set(), [], {}
    monkeypatch.setattr(
        zoo,
        'entries',
        lambda size: {
            'a': Entry('a', 'a.py'),
            'b': Entry('b', 'b.py', {'weights': 'a'}),
            'c': Entry('c', 'c.py'),
            'd': Entry('d', 'd.py'),
        },
    )
    monkeypatch.setattr(zoo, 'make_run', lambda entry, **_: entry.name)
    monkeypatch.setattr(zoo, 'check_budget', lambda run: None)
    monkeypatch.setattr(planned, 'finished', lambda run: (tmp_path / run / 'config.json').exists())

    def execute(run):
        ran.append(run)
        if run in broken:
            raise UserError('it broke')
        (tmp_path / run).mkdir()
        (tmp_path / run / 'config.json').write_text('{}')
        return 5

    monkeypatch.setattr(planned, 'execute', execute)
    monkeypatch.setattr(zoo.page, 'row', lambda run, peak: (run, peak))
    monkeypatch.setattr(zoo.page, 'write', lambda out, rows, **kw: given.update(kw, rows=rows))
    return broken, ran, given


def run(tmp_path, *arguments):
    return zoo.main([f'--workdir={tmp_path}', f'--out={tmp_path / "zoo.md"}', *arguments])


def test_each_is_run_once_and_the_page_has_all(stubs, tmp_path, capsys):
    broken, ran, given = stubs
    assert run(tmp_path, '--only=b') == 0
    assert ran == ['a', 'b'] and given['absent'] == ['c', 'd']  # b learns from a
    assert run(tmp_path, '--only=c') == 0
    assert ran == ['a', 'b', 'c'] and given['rows'] == [('a', 5), ('b', 5), ('c', 5)]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('[')]
    assert said == ['[1/2] a', '[2/2] b', '[1/1] c']
    assert run(tmp_path) == 0 and ran == ['a', 'b', 'c', 'd'] and not given['absent']


def test_one_that_fails_stops_none_but_those_that_learn_from_it(stubs, tmp_path, capsys):
    broken, ran, given = stubs
    broken.add('a')
    assert run(tmp_path) == 1
    assert ran == ['a', 'c', 'd'] and [name for name, _ in given['rows']] == ['c', 'd']
    assert given['failed'] == {'a': 'it broke', 'b': 'it learns from a, which failed.'}
    assert 'a failed: it broke' in capsys.readouterr().err


def test_where_all_fail_the_page_stays_as_it_was(stubs, tmp_path, capsys):
    broken, ran, given = stubs
    broken.update(('a', 'c', 'd'))
    assert run(tmp_path) == 2
    assert ran == ['a', 'c', 'd'] and not given
    assert 'no run ended as it should' in capsys.readouterr().err


def test_the_command_on_the_page_has_what_alters_the_figures(tmp_path):
    given = ['--steps=7', '--only=x', '--workdir=/somewhere', '--config.data.batch_size=8']
    text = zoo.command(*zoo.parse(given))
    assert text == 'python -m mim_jax.zoo --steps=7 --config.data.batch_size=8'
    assert zoo.parse(text.split()[3:])[0].steps == 7
    assert zoo.command(*zoo.parse([])) == 'python -m mim_jax.zoo'


@pytest.mark.slow
def test_a_method_is_trained_and_a_second_start_has_nothing_to_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    fields = {
        'data.batch_size': 8,
        'data.source.num_train': 64,
        'data.source.num_test': 40,
        'model.depth': 1,
        'model.width': 24,
        'eval.linear.epochs': 2,
        'eval.linear.warmup_epochs': 1,
        'log.every_steps': 1,
        'mesh.data': 1,
    }
    arguments = ['--only=simmim', '--steps=3', '--machine=a machine, jax 9']
    arguments += [f'--config.{name}={value}' for name, value in fields.items()]
    assert run(tmp_path, *arguments) == 0
    text = (tmp_path / 'zoo.md').read_text(encoding='utf-8')
    lines = (tmp_path / 'simmim' / 'metrics.jsonl').read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    losses = [line['train/loss'] for line in lines if 'train/loss' in line]
    knn = [line['eval/knn/top1'] for line in lines if 'eval/knn/top1' in line]
    assert len(losses) == 3 and len(knn) == 2
    (row,) = re.findall(r'^\| \[`simmim`\].*$', text, re.MULTILINE)
    assert f'| {losses[0]:.3f} → {losses[2]:.3f} |' in row
    assert f'| {100 * knn[0]:.1f} → {100 * knn[1]:.1f} |' in row
    (peak,) = json.loads((tmp_path / 'peaks.json').read_text()).values()
    assert f'| {peak / 2**20:,.0f} |' in row and peak > 200 << 20
    assert 'a machine, jax 9' in text and str(tmp_path) not in text
    assert '3 steps of 8 images' in text and 'on 40 test images\n  from 64 training' in text
    assert (tmp_path / 'images' / 'zoo' / 'simmim.png').stat().st_size > 1000

    capfd.readouterr()
    assert run(tmp_path, *arguments) == 0
    assert capfd.readouterr().out == f'{tmp_path / "zoo.md"}\n'
    assert (tmp_path / 'zoo.md').read_text(encoding='utf-8') == text
    # A run of another budget is not taken for one of this.
    for other in ('--seed=1', '--steps=4', '--config.eval.knn.max_test=20'):
        assert run(tmp_path, *arguments, other) == 2
        assert 'of another budget' in capfd.readouterr().err
