"""Groups by place and colour: simple linear iterative clustering (SLIC) of the image's patches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.morphing.base import ByNumber
from mim_jax.morphing.clusters import lloyd
from mim_jax.ranges import Positive, Repeats

# Linear RGB (sRGB primaries) to CIE XYZ, and the white of illuminant D65.
XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)


@dataclasses.dataclass(frozen=True)
class Superpixels(ByNumber):
    """Superpixels of whole patches; the tokens play no part; see `superpixel_groups`.

    compactness: how much place weighs against colour: so many units of CIELAB are worth one
      distance between neighbouring segments.
    iterations: updates of the segments' centres.
    """

    needs_grid = True

    compactness: Positive = 10.0
    iterations: Repeats = 10

    def form(self, tokens, num_groups, *, keys, images, grid):
        if images is None or grid is None:
            raise ValueError('superpixels are formed on images: pass images and grid.')
        return superpixel_groups(
            images,
            num_groups,
            grid=tuple(grid),
            compactness=self.compactness,
            iterations=self.iterations,
        )

    def title(self, num_tokens, schedule):
        return f'about {super().title(num_tokens, schedule)}'


@functools.partial(jax.jit, static_argnames=('grid', 'iterations'))
def superpixel_groups(images, num_groups, *, grid, compactness, iterations):
    """SLIC on the image of the patches' mean colours.

    Seeds lie on a regular grid. Patches go to the nearest segment, segments to the mean of their
    patches, `iterations` times, by (colour / compactness)**2 + (place / step)**2 with colour in
    CIELAB and `step` the distance between seeds; the first assignment is by place alone. Unlike in
    the paper every segment is compared, not only near ones, and segments may be disconnected.

    Args:
      images: [B, H, W, C] in [0, 1], C 1 (grey) or 3 (sRGB), H and W multiples of the grid.
      num_groups: int32 scalar K, may be traced: the number of seeds is about K, see `seeds`.
      grid: (h, w) of the patches.
      compactness, iterations: see `Superpixels`.

    Returns:
      groups [B, h * w] int32.

    Raises:
      UserError: the images have another number of channels.

    Source: Achanta et al., SLIC superpixels, TPAMI 2012.
    """
    h, w = grid
    batch, height, width, channels = images.shape
    if channels not in (1, 3):
        raise UserError(
            f'config.objective.morphing.grouping: superpixels need images of 1 or 3 channels, '
            f'these have {channels}; choose another grouping.'
        )
    patches = images.astype(jnp.float32).reshape(batch, h, height // h, w, width // w, channels)
    colours = cielab(patches.mean(axis=(2, 4)).reshape(batch, h * w, channels))
    places = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing='ij'), axis=-1)
    places = places.reshape(h * w, 2)
    starts, live = seeds(num_groups, grid)

    # In integers, because many patches are as near to one seed as to the next: the first takes it.
    squares = jnp.sum((places[:, None, :] - starts[None, :, :]) ** 2, axis=-1)
    squares = jnp.where(jnp.arange(h * w) < live, squares, jnp.iinfo(jnp.int32).max)
    groups = jnp.broadcast_to(jnp.argmin(squares, axis=-1).astype(jnp.int32), (batch, h * w))

    step = jnp.sqrt(h * w / live.astype(jnp.float32))
    places = jnp.broadcast_to((places - jnp.array([h, w]) / 2) / step, (batch, h * w, 2))
    points = jnp.concatenate([colours / compactness, places], axis=-1)
    # Every seed has a patch, so that the centres to begin with are read by nobody.
    return lloyd(points, groups, points, live=live, iterations=iterations)


def seeds(num_groups, grid):
    """Seeds on a regular grid of r x c patches, r and c in the proportion of the patches' grid.

    Returns places [h * w, 2] int32 (row, column), of which the first r * c count, and r * c, which
    differs from `num_groups` by at most half a row of seeds or column.
    """
    h, w = grid
    wanted = jnp.asarray(num_groups, jnp.float32)
    rows = jnp.clip(jnp.round(jnp.sqrt(wanted * h / w)), 1, h).astype(jnp.int32)
    columns = jnp.clip(jnp.round(wanted / rows), 1, w).astype(jnp.int32)
    index = jnp.arange(h * w, dtype=jnp.int32)
    row = (2 * (index // columns) + 1) * h // (2 * rows)
    column = (2 * (index % columns) + 1) * w // (2 * columns)
    return jnp.stack([row, column], axis=-1), rows * columns


def cielab(colours):
    """CIELAB (L in 0..100) of sRGB colours [..., 3] in [0, 1], or of grey ones [..., 1]."""
    colours = jnp.broadcast_to(colours, (*colours.shape[:-1], 3))
    linear = jnp.where(
        colours > 0.04045, ((jnp.maximum(colours, 0.0) + 0.055) / 1.055) ** 2.4, colours / 12.92
    )
    matrix = jnp.asarray(XYZ_FROM_RGB, jnp.float32) / jnp.asarray(WHITE, jnp.float32)[:, None]
    # Written as a sum: a matrix unit would round.
    xyz = jnp.sum(linear[..., None, :] * matrix, axis=-1)
    f = jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
