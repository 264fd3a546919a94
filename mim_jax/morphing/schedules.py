"""How many tokens join, and in how many steps: two integers shared by all images of a step."""

import jax
import jax.numpy as jnp


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
    """How many groups bipartite matching leaves; all arguments are Python integers."""
    for _ in range(num_steps):
        num_tokens -= min(tokens_per_step, (num_tokens - int(protect_first)) // 2)
    return num_tokens


def sample_schedule(key, num_tokens, max_merged, max_steps):
    """Draws a schedule as DTM does: n ~ U{0..max_merged} tokens to join, k ~ U{1..max_steps} steps.

    Args:
      key: one PRNG key.
      num_tokens: tokens of an image, N.
      max_merged: most tokens that a draw may ask to join; the paper's value is N.
      max_steps: most steps; the paper's value is 14.

    Returns:
      `(tokens_per_step, num_steps)`, int32 scalars; `tokens_per_step` may be 0: nothing joins.

    Source: DTM (arXiv 2401.00254), section 3, in the form of the released code.
    """
    key_merged, key_steps = jax.random.split(key)
    num_merged = jax.random.randint(key_merged, (), 0, max_merged + 1, jnp.int32)
    num_steps = jax.random.randint(key_steps, (), 1, max_steps + 1, jnp.int32)
    return merges_per_step(num_merged, num_steps, num_tokens=num_tokens), num_steps
