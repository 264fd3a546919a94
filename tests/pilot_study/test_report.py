import numpy as np
import pytest

from mim_jax.pilot_study import report

GRID = (2, 3)


def test_summary_has_the_paired_standard_error():
    values = np.array([[0.2, 0.4, 0.9, 0.5], [0.3, 0.6, 0.9, 0.4]])
    found = report.summary({'accuracy': values})['accuracy']
    differences = [0.1, 0.2, 0.0, -0.1]
    mean = sum(differences) / 4
    variance = sum((d - mean) ** 2 for d in differences) / 3
    assert found['tokens'] == pytest.approx(0.5) and found['groups'] == pytest.approx(0.55)
    assert found['difference'] == pytest.approx(mean)
    assert found['standard_error'] == pytest.approx((variance / 4) ** 0.5)


def test_table():
    side = {'tokens': 0.265, 'groups': 0.308, 'difference': 0.043, 'standard_error': 0.004}
    text = report.table(
        dict.fromkeys(report.NAMES, side), num_tokens=196, num_groups=98, by='zero-shot'
    )
    lines = text.splitlines()
    assert lines[0] == '| | 196 tokens | 98 groups | difference |'
    assert lines[2] == '| zero-shot accuracy of tokens | 26.5 % | 30.8 % | +4.3 ± 0.4 |'
    assert lines[4].endswith('| 0.265 | 0.308 | +0.043 ± 0.004 |')
    assert len(lines) == 2 + len(report.NAMES)


def test_right_is_green_wrong_is_red_and_unsure_is_grey():
    images = np.random.default_rng(0).random((1, 4, 6, 3), np.float32)
    probabilities = np.zeros((1, 6, 2), np.float32)
    probabilities[0] = [[1, 0], [0, 1], [0.5, 0.5], [0.25, 0.75], [0.75, 0.25], [0.5, 0.5]]
    shown = report.shade(images, probabilities, np.array([0]), grid=GRID)
    red, green, blue = 0.299, 0.587, 0.114
    for row in range(4):
        for column in range(6):
            patch = (row // 2) * 3 + column // 2
            r, g, b = images[0, row, column]
            grey = np.full(3, red * r + green * g + blue * b)
            cover = report.OPACITY * {0: 1, 1: 1, 2: 0, 3: 0.5, 4: 0.5, 5: 0}[patch]
            color = np.array(report.RIGHT if patch in (0, 4) else report.WRONG)
            expected = (1 - cover) * grey + cover * color
            np.testing.assert_allclose(shown[0, row, column], expected, atol=1e-5)
