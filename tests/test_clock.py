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
    # A whole number of steps is not rounded up to the next.
    assert Clock(24, 12800, 1).steps(Section(a_epochs=30.0), 'a', path='x') == 16000
    with pytest.raises(UserError, match='size of an epoch is not known'):
        Clock(32, None, 200).duration(Section(a_epochs=2.0), 'a', path='x')


def test_an_epoch_may_be_its_whole_batches():
    @dataclasses.dataclass
    class Section:
        every_epochs: float

    whole = Clock(batch_size=32, epoch_examples=100, total_steps=200, whole_batches=True)
    for epochs, steps, counted in [(1, 4, 3), (1.5, 5, 5), (20, 63, 60)]:
        assert CLOCK.steps(Section(epochs), 'every', path='x') == steps
        assert whole.steps(Section(epochs), 'every', path='x') == counted
    assert whole.duration(Section(1.5), 'every', path='x') == 4.5
    with pytest.raises(UserError, match='100 examples are no whole batch of 128; lower'):
        Clock(128, 100, 200, whole_batches=True).steps(Section(1), 'every', path='x')
