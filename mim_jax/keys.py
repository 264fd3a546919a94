"""Random keys: every draw comes from a key derived from (seed, step, name), and per image also from
its place in the batch.
"""

import zlib

import jax


def named(key: jax.Array | None, name: str) -> jax.Array | None:
    """A key for the draw called `name`; `key` is one typed PRNG key or an array of them, the result
    has its shape. Without a key, where nothing is drawn, there is none: None.
    """
    if key is None:
        return None
    salt = zlib.crc32(name.encode())
    fold = jax.random.fold_in
    for _ in range(key.ndim):
        fold = jax.vmap(fold, in_axes=(0, None))
    return fold(key, salt)


def per_example(key: jax.Array, batch_size: int) -> jax.Array:
    """Keys [B], one per example of a batch.

    They depend only on the example's place in the global batch, so that a batch split into
    microbatches or laid over another mesh draws the same.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        named(key, 'example'), jax.numpy.arange(batch_size)
    )
