"""How a number of patches rises in the course of a run."""

import math

import jax.numpy as jnp
import numpy as np


def rising_count(step, *, count, shares, stage, total):
    """How many of `count` patches at `step`, int32 scalar: a share of them that rises by equal
    amounts from stage to stage.

    Args:
      step: updates so far, may be traced.
      shares: that before the run, and that in its last stage.
      stage, total: lengths of a stage and of the run in steps, not necessarily whole; a stage of
        less than one step is one step. The last stage may be cut short.

    Source: HPM (Wang et al., CVPR 2023), t / T of its curriculum, t counted from 1 as in the
    released code.
    """
    stage = max(stage, 1)
    passed = np.minimum(np.arange(1, math.ceil(total / stage) + 1) * stage / total, 1)
    share = shares[0] + (shares[1] - shares[0]) * passed
    # The least that is added keeps whole numbers from being rounded down.
    counts = np.floor(count * share + 1e-6).astype(np.int32)
    begins = np.ceil(np.arange(1, len(counts)) * stage - 1e-6).astype(np.int32)
    return jnp.asarray(counts)[jnp.searchsorted(jnp.asarray(begins), step, side='right')]
