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


def test_epochs_are_counted_in_examples():
    # 3.125 steps each: update 3 still has examples of the first.
    assert [int(CLOCK.epoch(s)) for s in (0, 3, 4, 6, 7, 25)] == [0, 0, 1, 1, 2, 8]
    with pytest.raises(UserError, match='size of an epoch is not known'):
        Clock(32, None, 200).epoch(3)


def test_an_epoch_may_be_its_whole_batches():
    @dataclasses.dataclass
    class Section:
        every_epochs: float

    whole = Clock(batch_size=32, epoch_examples=100, total_steps=200, whole_batches=True)
    for epochs, steps, counted in [(1, 4, 3), (1.5, 5, 5), (20, 63, 60)]:
        assert CLOCK.steps(Section(epochs), 'every', path='x') == steps
        assert whole.steps(Section(epochs), 'every', path='x') == counted
    assert [int(whole.epoch(s)) for s in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]
    with pytest.raises(UserError, match='100 examples are no whole batch of 128; lower'):
        Clock(128, 100, 200, whole_batches=True).steps(Section(1), 'every', path='x')
