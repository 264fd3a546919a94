"""What docs/first_run.md shows of a first run, and how it is recorded."""

import re
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / 'docs'


@pytest.fixture(scope='module')
def recorder():
    return runpy.run_path(str(DOCS / 'examples' / 'record_first_run.py'))


PAGE = DOCS / 'first_run.md'


def test_the_page_shows_whole_runs_in_80_columns():
    page = PAGE.read_text(encoding='utf-8')
    first, again = re.findall(r'```\n(.*?)\n```', page, re.DOTALL)
    for block in (first, again):
        lines = block.splitlines()
        assert lines[0] == '$ python -m mim_jax.main --config=configs/quickstart.py'
        assert max(map(len, lines)) <= 80 and len(lines) > 3
        assert not re.search(r'[\r\x1b]|Traceback|/tmp/|/home/|/root/', block)
    assert 'eval' in first or 'top1' in first
    assert re.search(r'\b480/480\b', first) and 'done:' in first
    assert 'done already' in again


def test_lines_that_stay_and_some_that_are_overwritten(recorder):
    transcript = recorder['Transcript']()
    for text in ('head\r\n', '\r 0/9', '\r 1/9', '\x1b[1mx\r', '\r 2/9', '\r 3/9\x1b[K', '\r 4/9'):
        transcript.feed(text)
    transcript.feed('\r' + 4 * ' ' + '\rmessage\n')
    transcript.feed('\r 5/9\r 9/9\n')
    lines = transcript.close()
    assert lines[0] == 'head' and 'message' in lines and lines[-1] == ' 9/9'
    states = lines[1 : lines.index('message')]
    assert len(states) == recorder['KEPT'] and states == sorted(states) and states[0] == ' 0/9'
    assert lines[lines.index('message') + 1 : -1] == [' 5/9']


def test_a_longer_state_leaves_its_end_where_nothing_erases_it(recorder):
    transcript = recorder['Transcript']()
    transcript.feed('long state\rshort\n')
    assert transcript.close()[-1] == 'shortstate'


def test_a_command_runs_on_a_terminal_of_80_columns(recorder):
    code = (
        'import os, sys; print(os.get_terminal_size(2).columns, sys.stderr.isatty()); sys.exit(3)'
    )
    assert recorder['record']([sys.executable, '-c', code]) == (['80 True'], 3)
