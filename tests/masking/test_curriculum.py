import fractions
import math

import jax
import numpy as np
import pytest

from mim_jax.masking import rising_count


@pytest.mark.parametrize(
    ('stage', 'total', 'shares'),
    [(10, 200, (0, 0.5)), (2.5, 40, (0.25, 1)), (0.3, 6, (0.5, 0)), (7, 30, (0, 1))],
)
def test_the_share_rises_from_stage_to_stage(stage, total, shares):
    counted = jax.jit(
        jax.vmap(lambda step: rising_count(step, count=48, shares=shares, stage=stage, total=total))
    )(np.arange(total))
    assert counted.dtype == np.int32
    first, last = map(fractions.Fraction, shares)
    length = fractions.Fraction(max(stage, 1))
    for step, count in enumerate(counted):
        passed = min((step // length + 1) * length / total, 1)
        assert count == math.floor(48 * (first + (last - first) * passed)), step
