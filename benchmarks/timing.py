"""Measuring times on an accelerator, for the other benchmarks."""

import time

import jax
import numpy as np

WARM_UP = 5


def milliseconds(function, *arguments, calls=10, repeats=10):
    """Median over `repeats` of the mean time of `calls` calls in a row, compilation left out."""
    for _ in range(WARM_UP):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        times.append(1e3 * (time.perf_counter() - start) / calls)
    return float(np.median(times))


def reason(error):
    """The first line of an exception, for a table's cell."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
