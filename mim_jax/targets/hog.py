"""Histograms of oriented gradients as targets."""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid
from mim_jax.ranges import Positive, Range, Side
from mim_jax.targets.base import Target


@dataclasses.dataclass(frozen=True)
class HOG(Target):
    """Histograms of gradient directions in the cells of every patch, per colour channel.

    1. Central differences I[i+1] - I[i-1] along rows and columns, zero in the image's outermost
       rows and columns respectively.
    2. Direction modulo 180 degrees, put wholly into one of `bins` equal bins (bin b holds
       [b, b+1) * 180 / bins; 0 is a gradient along the columns' axis, i.e. a vertical edge).
    3. Per cell and channel the sum of the magnitudes of each bin, divided by the cell's pixels.
    4. With `normalize`, each histogram minus its mean, divided by its deviation (no block norm).

    Source: the form of DMJD (mx-mark/DMJD), with cells of 8x8 pixels in patches of 16x16.
    """

    bins: Annotated[int, Range(1, 1000)] = 9
    cells: tuple[Side, ...] = (2, 2)  # cells per patch: rows, columns
    normalize: bool = True
    eps: Positive = 1e-5  # added to the variance

    def __call__(self, variables, images):
        return self.histograms(images, patch_size=self.encoder.patch_size)

    def histograms(self, images, *, patch_size):
        """Images [B,H,W,C] in [0,1] to float32 [B,N,rows*columns*C*bins], flattened in that order.

        Raises UserError where a patch is not a whole number of cells.
        """
        (p, q), (rows, columns) = patch_size, self.cells
        if p % rows or q % columns:
            raise UserError(
                f'target hog: a patch of {p}x{q} pixels is not a whole number of {rows}x{columns} '
                'cells; change cells of the target or model.patch_size'
            )
        h, w = patch_grid(images.shape[1:3], patch_size)
        batch, _, _, channels = images.shape
        histograms = self._pixels(images.astype(jnp.float32)).reshape(
            batch, h, rows, p // rows, w, columns, q // columns, channels, self.bins
        )
        cells = histograms.mean(axis=(3, 6))  # [B, h, rows, w, columns, C, bins]
        if self.normalize:
            cells -= cells.mean(axis=-1, keepdims=True)
            cells /= jnp.sqrt((cells**2).mean(axis=-1, keepdims=True) + self.eps)
        return cells.transpose(0, 1, 3, 2, 4, 5, 6).reshape(batch, h * w, -1)

    def _pixels(self, images):
        """Each pixel's gradient magnitude at its direction's bin, [B,H,W,C,bins]."""
        dy = jnp.zeros_like(images).at[:, 1:-1].set(images[:, 2:] - images[:, :-2])
        dx = jnp.zeros_like(images).at[:, :, 1:-1].set(images[:, :, 2:] - images[:, :, :-2])
        direction = jnp.arctan2(dy, dx) % math.pi
        # A direction just below 0 may round to exactly 180 degrees: it belongs to the last bin.
        index = jnp.minimum(jnp.floor(direction * (self.bins / math.pi)), self.bins - 1)
        return jax.nn.one_hot(index.astype(jnp.int32), self.bins) * jnp.hypot(dx, dy)[..., None]
