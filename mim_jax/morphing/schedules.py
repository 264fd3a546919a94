"""How many tokens join, and in how many steps: two integers shared by all images of a step."""

import jax
import jax.numpy as jnp
from jax import lax


def merges_per_step(num_merged, num_steps, *, num_tokens):
    """Tokens that join in each of `num_steps` steps, for about `num_merged` in total.

    ceil(n / k), or floor(n / k) where the former would ask for more than `num_tokens` in total
    (released code of DTM). For Python integers an integer, for arrays an int32 array.
    """
    up = -(-num_merged // num_steps)
    down = num_merged // num_steps
    if isinstance(up, int):
        return down if up * num_steps > num_tokens else up
    return jnp.where(up * num_steps > num_tokens, down, up)


def groups_left(num_tokens, tokens_per_step, num_steps, *, protect_first):
    """How many groups bipartite matching leaves of `num_tokens` (an int).

    For Python integers an integer, for arrays, which may be traced, an int32 scalar.
    """
    protected = int(protect_first)
    if isinstance(tokens_per_step, int):
        for _ in range(num_steps):
            num_tokens -= min(tokens_per_step, (num_tokens - protected) // 2)
        return num_tokens

    def step(_, left):
        return left - jnp.minimum(tokens_per_step, (left - protected) // 2)

    return lax.fori_loop(0, num_steps, step, jnp.int32(num_tokens))


def sample_schedule(key, *, num_tokens, num_merged, num_steps):
    """Draws a schedule as DTM does: how many tokens join, and in how many steps, both uniform.

    Args:
      key: one PRNG key.
      num_tokens: tokens of an image, N.
      num_merged: (fewest, most) tokens that a draw may ask to join; in the paper (0, N).
      num_steps: (fewest, most) steps; in the paper (1, 14).

    Returns:
      `(tokens_per_step, num_steps)`, int32 scalars; `tokens_per_step` may be 0: nothing joins.

    Source: DTM (arXiv 2401.00254), section 3, in the form of the released code.
    """
    key_merged, key_steps = jax.random.split(key)
    merged = jax.random.randint(key_merged, (), num_merged[0], num_merged[1] + 1, jnp.int32)
    steps = jax.random.randint(key_steps, (), num_steps[0], num_steps[1] + 1, jnp.int32)
    return merges_per_step(merged, steps, num_tokens=num_tokens), steps
