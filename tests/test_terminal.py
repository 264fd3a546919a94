import pytest

from mim_jax import terminal


@pytest.mark.parametrize(
    'seconds, text',
    [
        (5.2, '5s'),
        (59.7, '1m00s'),
        (310, '5m10s'),
        (7500, '2h05m'),
        (200_000, '2d07h'),
        (float('inf'), '?'),
    ],
)
def test_format_seconds(seconds, text):
    assert terminal.format_seconds(seconds) == text


def test_a_line_of_training_says_the_most_important_in_80_columns():
    values = {f'health/grad_norm/block_{i:02}': 0.1 for i in range(24)}
    values |= {'train/loss': -123.456, 'train/learning_rate': 1.23456e-5, 'train/codes_used': 3.0}
    values |= {'speed/wait_share': 0.25, 'speed/images_per_second': 123_456.0}
    values |= {'speed/eta_seconds': 1e9}
    line = terminal.line(1_000, 2_000_000_000, values)
    assert line == ('step       1000/2000000000 (0%)  loss -123.5  lr 1.2e-05  123456 img/s')
    values |= {'speed/eta_seconds': 60.0, 'speed/images_per_second': 812.3}
    line = terminal.line(1_000, 2_000, values)
    assert line.endswith('loss -123.5  lr 1.2e-05  812 img/s  ETA 1m00s  wait 25%')


def test_a_line_of_an_evaluation_says_what_fits():
    values = {f'eval/robustness/error_c_{i}': i / 100 for i in range(20)}
    line = terminal.line(5, 10, values)
    assert line == 'step  5/10 (50%)  eval/robustness/error_c_0 0  … 19 more'
    assert terminal.line(5, 10, {'eval/knn/top1': 0.25}) == 'step  5/10 (50%)  eval/knn/top1 0.25'
    long = {'eval/' + 'x' * 100: 1.0, 'eval/y': 2.0}
    assert terminal.line(5, 10, long).endswith('x 1  … 1 more')  # one figure at least
