"""The decisions, by values: what is said, when, and how often."""

import pytest

from mim_jax.early_warnings import LINES, PLATEAU_LINES, Watch, warnings

ABOUT = {'warmup': 20, 'workers': 3}
HEALTHY = {'health/effective_rank': 12.0, 'health/feature_std': 0.6, 'speed/wait_share': 0.01}


def lines(count, losses=None, **values):
    return [
        {
            'step': 10 * (i + 1),
            'train/loss': losses(i) if losses else 1.0 / (i + 1),
            **HEALTHY,
            **{name.replace('__', '/'): value for name, value in values.items()},
        }
        for i in range(count)
    ]


def test_a_healthy_run_is_not_warned_of():
    assert warnings(lines(40), **ABOUT) == {}
    assert warnings([], **ABOUT) == {}


@pytest.mark.parametrize(
    'value', [{'health__effective_rank': 1.01}, {'health__feature_std': 0.001}]
)
def test_collapse(value):
    assert set(warnings(lines(LINES, **value), **ABOUT)) == {'collapse'}
    assert warnings(lines(LINES - 1, **value), **ABOUT) == {}
    assert warnings(lines(LINES, **value) + lines(1), **ABOUT) == {}  # it is over


def test_collapse_needs_values():
    for missing in (None, float('nan')):
        assert warnings(lines(LINES, health__effective_rank=missing), **ABOUT) == {}
    without = [{'step': line['step'], 'train/loss': line['train/loss']} for line in lines(LINES)]
    assert warnings(without, **ABOUT) == {}


def test_plateau_from_the_start():
    flat = lines(2 + PLATEAU_LINES, losses=lambda i: 1.0 - 0.005 * (i % 2))
    found = warnings(flat, **ABOUT)
    assert set(found) == {'plateau'} and '0.995' in found['plateau']
    assert warnings(flat[:-1], **ABOUT) == {}  # the warm-up was just over
    rising = lines(2 + PLATEAU_LINES, losses=lambda i: 1.0 + i)
    assert set(warnings(rising, **ABOUT)) == {'plateau'}
    # It fell once: what came after it is another matter.
    fell = lines(40, losses=lambda i: 0.5 if i == 3 else 1.0)
    assert warnings(fell, **ABOUT) == {}
    negative = lines(40, losses=lambda i: -1.0 - 0.1 * i)
    assert warnings(negative, **ABOUT) == {}


def test_data_bound_names_the_workers():
    found = warnings(lines(LINES, speed__wait_share=0.45), **ABOUT)
    assert set(found) == {'data'}
    assert '45%' in found['data'] and 'data.workers (now 3)' in found['data']
    waited_once = lines(LINES) + lines(1, speed__wait_share=0.9)
    assert warnings(waited_once, **ABOUT) == {}


def test_each_thing_is_said_once_also_by_a_run_that_goes_on():
    slow = lines(20, speed__wait_share=0.5)
    watch = Watch([], **ABOUT)
    said = [text for line in slow for text in watch.add(line)]
    assert len(said) == 1 and said[0].startswith('Warning: ')
    evaluation = {'step': 200, 'eval/knn/top1': 0.5}
    again = Watch([*slow, evaluation], **ABOUT)
    assert again.add(slow[-1]) == []
