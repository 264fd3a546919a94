"""Scenes of which a network sees a part, or that it sees small amid their mirror images.

A scene is a view of another size than the model's images. What is predicted of it has the size of
these, [B,H,W,C], and shows the whole scene; `framed` brings it to where the network sees it.
Each class in ZOOMS is a config section.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.models.resizing import adaptive_average
from mim_jax.ranges import Range


class Zoom:
    """What an objective asks of a zoom."""

    def borders(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Pixels by which scene and images (height, width) differ, in rows and in columns."""
        return tuple(round(self.border * side) for side in image_size)

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        """Raises UserError where images of that size (height, width) and channels do not suit."""
        if not all(self.borders(image_size)):
            raise UserError(
                f'config.objective.corruption.border = {self.border}: less than a pixel of images '
                f'of {image_size[0]}x{image_size[1]}; raise it.'
            )

    def scene_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the scene for images of that size."""
        raise NotImplementedError

    def seen(self, keys: jax.Array, scene: jax.Array, size: tuple[int, int]) -> jax.Array:
        """What is seen, [B,*size,C], of scenes [B,h,w,C], by the draws of each one's own key of
        `keys` [B].
        """
        raise NotImplementedError

    def whole(self, images: jax.Array) -> jax.Array:
        """Pictures [B,H,W,C] of whole scenes at the size of the scenes, by the mean of areas."""
        return adaptive_average(images, self.scene_size(images.shape[1:3]))

    def framed(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Pictures [B,H,W,C] of whole scenes as they are seen, of the same shape."""
        return self.seen(keys, self.whole(images), images.shape[1:3])


@dataclasses.dataclass(frozen=True)
class ZoomIn(Zoom):
    """The middle of a scene is seen.

    border: what is not seen on each of its sides, as a share of the images' (32 of 224 pixels).

    Source: Beyond Masking (Tian et al., 2022), whose scenes have 288 pixels.
    """

    border: Annotated[float, Range(0, 1, low_open=True)] = 1 / 7

    def scene_size(self, image_size):
        borders = self.borders(image_size)
        return tuple(side + 2 * border for side, border in zip(image_size, borders, strict=True))

    def seen(self, keys, scene, size):
        top, left = self.borders(size)
        return scene[:, top : top + size[0], left : left + size[1]]


@dataclasses.dataclass(frozen=True)
class ZoomOut(Zoom):
    """A scene is seen at a place that is drawn for it, and around it its reflection.

    border: by how much it is smaller than the images, as a share of their sides (64 of 224 pixels).

    Source: Beyond Masking, whose scenes have 160 pixels; there a whole batch shares its draw.
    """

    border: Annotated[float, Range(0, 0.4, low_open=True)] = 2 / 7  # a scene is reflected once

    def scene_size(self, image_size):
        borders = self.borders(image_size)
        return tuple(side - border for side, border in zip(image_size, borders, strict=True))

    def seen(self, keys, scene, size):
        borders = jnp.asarray(self.borders(size))
        corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, borders))(keys)
        sources = [
            _reflected(jnp.arange(side) - corners[:, axis, None], scene.shape[1 + axis])
            for axis, side in enumerate(size)
        ]
        # By matrices of ones and zeros: scattered sums, a gather's gradient, have no fixed order.
        rows, columns = (
            jax.nn.one_hot(source, count, dtype=jnp.float32)
            for source, count in zip(sources, scene.shape[1:3], strict=True)
        )
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum('bih,bjw,bhwc->bijc', rows, columns, scene, precision=highest)


def _reflected(places, count):
    """Which of `count` pixels lies at places that may be outside, the last one repeated."""
    places = jnp.maximum(places, -1 - places)
    return jnp.minimum(places, 2 * count - 1 - places)


ZOOMS = {'zoom_in': ZoomIn, 'zoom_out': ZoomOut}
