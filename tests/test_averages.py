"""How the average of the parameters moves, and which parameters have one."""

import numpy as np
import pytest

from mim_jax import averages
from mim_jax.averages import Average
from mim_jax.clock import Clock
from mim_jax.errors import UserError

CLOCK = Clock(batch_size=10, epoch_examples=50, total_steps=20)


def test_a_constant_decay_and_none():
    assert Average().decays(CLOCK) is None
    assert [float(Average(decay=0.9).decays(CLOCK)(s)) for s in (0, 7, 50)] == pytest.approx(
        [0.9] * 3
    )


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize(('given', 'rise'), [({}, 20), ({'rise_epochs': 2.0}, 10)])
def test_a_decay_rises_over_the_run_or_a_duration(schedule, given, rise):
    average = Average(decay=0.5, end_decay=0.9, schedule=schedule, **given)
    found = [float(average.decays(CLOCK)(step)) for step in range(25)]
    for step, value in enumerate(found):
        share = min(step / rise, 1)
        if schedule == 'cosine':
            share = (1 - np.cos(np.pi * share)) / 2
        assert value == pytest.approx(0.5 + 0.4 * share, abs=1e-6)


def test_only_the_named_parts_are_averaged():
    params = {'encoder': np.ones(2), 'projector': np.zeros(1), 'decoder': np.ones(3)}
    part = Average(decay=0.75, parts=('encoder', 'projector')).of(params)
    assert part.keys() == {'encoder', 'projector'} and Average().of(params).keys() == params.keys()
    new = {name: value + 4 for name, value in params.items()}
    moved = averages.moved(part, new, 0.75)
    assert moved.keys() == part.keys()
    np.testing.assert_allclose(moved['encoder'], 0.75 * 1 + 0.25 * 5)
    with pytest.raises(
        UserError, match="parts names 'head', but the parameters have the parts dec"
    ):
        Average(decay=0.9, parts=('head',)).of(params)


def test_a_rise_of_no_length_is_over_and_one_without_an_end_is_refused():
    average = Average(decay=0.5, end_decay=0.9, rise_steps=0)
    assert float(average.decays(CLOCK)(0)) == pytest.approx(0.9)
    with pytest.raises(ValueError, match='rise_epochs needs end_decay'):
        Average(decay=0.5, rise_epochs=3.0)
