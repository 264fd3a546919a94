"""How far a run is."""

import dataclasses

import jax
import pytest

from mim_jax.clock import Clock
from mim_jax.errors import UserError

CLOCK = Clock(batch_size=32, epoch_examples=100, total_steps=200)


def test_progress_is_a_share_of_the_run():
    assert [float(CLOCK.progress(s)) for s in (0, 50, 200, 300)] == [0, 0.25, 1, 1]
    assert float(jax.jit(CLOCK.progress)(150)) == 0.75


def test_durations_are_not_rounded_where_they_are_asked_for_exactly():
    @dataclasses.dataclass
    class Section:
        a_epochs: float | None = None
        a_examples: int | None = None
        a_percent: float | None = None

    # An epoch has 3.125 steps.
    found = [CLOCK.duration(Section(**x), 'a', path='x') for x in ({}, {'a_epochs': 2.0})]
    assert found == [None, 6.25]
    assert CLOCK.duration(Section(a_examples=16), 'a', path='x') == 0.5
    assert CLOCK.duration(Section(a_percent=0.25), 'a', path='x') == 0.5
    assert CLOCK.steps(Section(a_epochs=2.0), 'a', path='x') == 7
    with pytest.raises(UserError, match='size of an epoch is not known'):
        Clock(32, None, 200).duration(Section(a_epochs=2.0), 'a', path='x')
