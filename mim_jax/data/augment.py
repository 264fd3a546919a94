"""Device side of the data: from a batch as read to the views, inside the jitted step.

Every example has its own key, so that the same example gets the same draws in whatever
microbatch or shard it is computed.
"""

import jax
import jax.numpy as jnp

from mim_jax import keys as named_keys
from mim_jax.data.colors import jitter, recolor


def augment_views(keys, batch, views):
    """The views of a batch: images in their colours, flipped together with their maps.

    Args:
      keys: typed PRNG keys [B], one per example. What a view draws depends on its name alone.
      batch: as read, see `mim_jax.data.batch_spec`.
      views: name -> View.

    Returns:
      `batch` with float32 [B,H,W,C] in [0, 1] for every view, those that are like another
      included; its maps flipped with it; `NAME_flipped` bool [B] where a view asks for boxes.
    """
    seen = dict(batch)
    for name, view in views.items():
        shown = view.like or name
        images = batch[shown].astype(jnp.float32) / 255.0
        flip = views[shown].flip
        # Four numbers in one draw: the jitter's three factors, and whether to flip.
        jitter_draws = _draws(_keys(keys, name))
        flipped = _draws(_keys(keys, shown))[:, 3] < flip
        images = jitter(images, view.colors, jitter_draws[:, :3], _keys(keys, name))
        images = recolor(images, view.colors, _keys(keys, name))
        seen[name] = _flip(images, flipped) if flip > 0 else images
        for map_name in view.maps:
            key = f'{name}_{map_name}'
            seen[key] = _flip(batch[key], flipped) if flip > 0 else batch[key]
        if view.boxes:
            seen[f'{name}_flipped'] = flipped
    return seen


def _keys(keys, name):
    """Of a view's own draws."""
    if name == 'images':  # as it was when there was but one view
        return jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
    return named_keys.named(keys, f'view {name}')


def _draws(keys):
    return jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)


def _flip(array, flipped):
    """[B,H,W,…] mirrored from left to right where `flipped` [B]."""
    where = flipped.reshape(-1, *[1] * (array.ndim - 1))
    return jnp.where(where, array[:, :, ::-1], array)


def normalize(images, *, mean, std):
    """(images - mean) / std per channel; float32 [...,C] in and out."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images - mean) / std


def denormalize(images, *, mean, std):
    """The inverse of `normalize`; not clipped to [0, 1]."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return images * std + mean
