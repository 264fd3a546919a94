"""The short form of `python -m tests.fuzz`: 500 cases; twenty times as many with `nightly`."""

import hypothesis
import pytest

from mim_jax.errors import UserError
from tests.fuzz import SHARES, SUBJECTS
from tests.fuzz.campaign import campaign

SLOW = ('runs', 'records')  # they trace, or import TensorFlow Datasets
PER_CASE = 100  # examples of the profile `ci`


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SUBJECTS]
)
def test_every_case_ends_well_or_in_one_sentence(name):
    if name == 'pytorch':
        pytest.importorskip('torch', reason='needs the extra "parity"; CI runs it in that stage')
    cases = SHARES[name] * hypothesis.settings().max_examples // PER_CASE
    report = campaign(name, SUBJECTS[name], cases=cases)
    assert not report.failures, '\n'.join(report.failures)
    assert report.outcomes['told'] + report.outcomes['corrupt'] and report.outcomes.total() == cases


def test_what_is_wrong_counts_as_a_failure():
    def subject(folder):
        outcomes = iter(
            [
                'fine',
                UserError('one sentence'),
                KeyError('raw'),
                SystemExit(0),
                UserError('x' * 3000),
            ]
        )

        def case(rng):
            del rng
            outcome = next(outcomes)

            def act():
                if isinstance(outcome, str):
                    return outcome
                raise outcome

            return repr(outcome)[:20], act

        return case

    report = campaign('made', subject, cases=5)
    assert report.outcomes == {'fine': 1, 'told': 1}
    assert [failure.split(':')[0] for failure in report.failures] == ['made 2', 'made 3', 'made 4']
    assert 'KeyError' in report.failures[0] and 'no sentence' in report.failures[2]


def test_a_case_is_known_by_its_number():
    def drawn(**options):
        found = []

        def case(rng):
            found.append(int(rng.integers(2**32)))
            return '', lambda: 'fine'

        campaign('made', lambda folder: case, **options)
        return found

    assert drawn(cases=3)[2:] == drawn(cases=1, first=2) != drawn(cases=1, first=1)
