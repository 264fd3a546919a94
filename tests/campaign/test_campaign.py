"""The short form of the campaign, and how its table is written."""

import pytest

from tests.campaign.__main__ import BEGIN, END, write
from tests.campaign.faults import FAULTS, Fault, tried
from tests.campaign.lab import Lab


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp('campaign'))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name, fault in FAULTS.items() if fault.short])
def test_short_form(name, lab):
    fault = FAULTS[name]
    result = tried(fault, lab, trials=fault.short, seed=0)
    assert not result.failures, '\n'.join(text for _, text in result.failures)


def made(name, provoke):
    return Fault(name, expected='nothing', trials=4, short=1, provoke=provoke)


def test_trials_are_drawn_by_seed_name_and_number_and_failures_are_counted():
    def provoke(lab, number, draws):
        """Draws."""
        lab.append(draws.random())
        assert number != 2, 'the third'
        return 'even' if number % 2 == 0 else 'odd'

    first, again, other, alone = [], [], [], []
    result = tried(made('a', provoke), first, trials=4, seed=0)
    assert result.text() == '4 trials, 1 failure (even 1, failed 1, odd 2)'
    ((number, told),) = result.failures
    assert number == 2 and 'AssertionError: the third' in told
    tried(made('a', provoke), again, trials=4, seed=0)
    tried(made('a', provoke), other, trials=4, seed=1)
    tried(made('a', provoke), alone, first=3, trials=1, seed=0)
    assert first == again != other and len(set(first)) == 4
    assert alone == first[3:]


def test_rows_are_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{BEGIN}\n{END}\nafter\n')
    names = list(FAULTS)[:2]
    for name in reversed(names):
        write(page, FAULTS[name], 'old')
    write(page, FAULTS[names[1]], 'new')
    lines = page.read_text().splitlines()
    assert lines[:2] == ['before', BEGIN] and lines[-2:] == [END, 'after']
    assert [line.split(' | ')[0] for line in lines[4:-2]] == [f'| {name}' for name in names]
    assert [line.rpartition(' | ')[2] for line in lines[4:-2]] == ['old |', 'new |']
