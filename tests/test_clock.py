"""How far a run is."""

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
