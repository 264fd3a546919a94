"""Confusion of the classes of pixels, and the figures that are made of it."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data.fields import UNLABELLED


def figures(confusion: np.ndarray) -> dict[str, float]:
    """Shares from 0 to 1 by a confusion matrix [true class, predicted class].

    miou: the mean over the classes of pixels that are rightly of the class over those that are or
    are said to be; classes without any are left out. macc: the mean over the true classes of the
    share that is found. aacc: the share of all pixels that is right.
    """
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = true + said - right
    return {
        'miou': float(np.mean(right[union > 0] / union[union > 0])),
        'macc': float(np.mean(right[true > 0] / true[true > 0])),
        'aacc': float(right.sum() / confusion.sum()),
    }


def count_pairs(labels: jax.Array, predicted: jax.Array, *, classes: int) -> jax.Array:
    """Confusion int32 [classes,classes] of int [B,…] each, labels of 255 left out."""
    known = labels != UNLABELLED
    places = jnp.where(known, labels * classes + predicted, classes**2).reshape(len(labels), -1)

    # One image at a time: a batch split over devices is counted where it lies.
    def count(places):
        return jnp.zeros(classes**2 + 1, jnp.int32).at[places].add(1)

    return jax.vmap(count)(places).sum(axis=0)[:-1].reshape(classes, classes)
