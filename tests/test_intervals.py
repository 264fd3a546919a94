import json

from mim_jax.intervals import Interval

STEPS = [{'loss': 0.1 * i + 1 / 3, 'rate': 1.0 / (i + 1)} for i in range(7)]


def test_means_and_own_values():
    interval = Interval(('rate',))
    assert interval.take() == {}
    for metrics in STEPS:
        interval.add(metrics)
    taken = interval.take()
    assert taken == {'loss': sum(m['loss'] for m in STEPS) / 7, 'rate': STEPS[-1]['rate']}
    interval.add(STEPS[2])
    assert interval.take() == STEPS[2]


def test_a_state_through_json_goes_on_to_the_same_bits():
    whole = Interval(('rate',))
    for metrics in STEPS:
        whole.add(metrics)
    first = Interval(('rate',))
    for metrics in STEPS[:3]:
        first.add(metrics)
    second = Interval(('rate',), json.loads(json.dumps(first.state)))
    for metrics in STEPS[3:]:
        second.add(metrics)
    assert second.take() == whole.take()
