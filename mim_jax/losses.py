"""Distances between tokens, and their reductions; all in float32."""

import jax.numpy as jnp

SMOOTH_L1_BETA = 2.0
NORM_EPS = 1e-12


def cosine_distance(prediction, target):
    """1 - cosine of the last axes: [...,D], [...,D] to [...]. A zero vector has cosine 0."""
    return 1.0 - jnp.sum(unit(prediction) * unit(target), axis=-1)


def unit(x):
    """x [...,D] divided by its Euclidean norm, float32; one shorter than 1e-12 stays as it is.

    Dividing those by the bound instead, as is common, would give them gradients of order 1e12.
    """
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > NORM_EPS**2, squares, 1.0))


def smooth_l1(difference, *, beta=SMOOTH_L1_BETA):
    """Element-wise x^2 / (2 beta) where |x| < beta, |x| - beta/2 elsewhere."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * difference**2 / beta, size - 0.5 * beta)


DISTANCES = {
    'cosine': cosine_distance,
    'l1': lambda p, t: jnp.abs(p - t).mean(axis=-1),
    'l2': lambda p, t: ((p - t) ** 2).mean(axis=-1),
    'smooth_l1': lambda p, t: smooth_l1(p - t).mean(axis=-1),
}


def token_distance(prediction, target, *, distance):
    """Distance of every token: prediction and target [B,N,D] to float32 [B,N].

    'cosine' is 1 - cosine; 'l1', 'l2' and 'smooth_l1' (beta 2) are means over D.
    """
    if distance not in DISTANCES:
        raise ValueError(f'distance is {distance!r}, allowed: {", ".join(DISTANCES)}')
    return DISTANCES[distance](prediction.astype(jnp.float32), target.astype(jnp.float32))


def masked_mean(values, mask):
    """Mean of values [B,N] where mask [B,N] is True; 0 if nowhere. Float32 scalar."""
    weights = mask.astype(jnp.float32)
    return jnp.sum(values.astype(jnp.float32) * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def standardize_tokens(target, *, eps=1e-6):
    """Tokens [...,D], float32, each with mean 0 and variance 1 (LayerNorm without affine)."""
    target = target.astype(jnp.float32)
    mean = target.mean(axis=-1, keepdims=True)
    return (target - mean) / jnp.sqrt(target.var(axis=-1, keepdims=True) + eps)
