"""The families of initialisation that masked image modelling uses."""

import jax
import jax.numpy as jnp
import numpy as np

INITS = ('mae', 'beit', 'normal')
TOKEN_STD = 0.02


def normal_token(key, shape, dtype=jnp.float32):
    """Class, mask, register and learned position entries: N(0, 0.02)."""
    return TOKEN_STD * jax.random.normal(key, shape, dtype)


def cut_token(key, shape, dtype=jnp.float32):
    """The same normal cut at one deviation, as BEiT's own code cuts it: 0.0108 is left of 0.02."""
    return TOKEN_STD * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)


TOKEN_INITS = {'normal': normal_token, 'cut': cut_token}


def kernel_init(init, *, in_axes=1, scale=1.0):
    """Initialiser of a linear kernel whose first `in_axes` axes are inputs, the rest outputs.

    'mae': Xavier-uniform over the whole (fused) kernel. 'beit': the normal of `cut_token`.
    'normal': that of `normal_token`, as in I-JEPA's code. `scale` multiplies the result; it may be
    traced.
    """
    if init not in INITS:
        raise ValueError(f'init {init!r} is none of {", ".join(INITS)}')

    def initialise(key, shape, dtype=jnp.float32):
        if init == 'mae':
            fan_in, fan_out = np.prod(shape[:in_axes]), np.prod(shape[in_axes:])
            bound = float(np.sqrt(6 / (fan_in + fan_out)))
            values = jax.random.uniform(key, shape, dtype, -bound, bound)
        else:
            values = TOKEN_INITS[{'beit': 'cut', 'normal': 'normal'}[init]](key, shape, dtype)
        return values * scale

    return initialise
