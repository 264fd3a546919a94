"""Segmentation of images of any size by a window that slides over them: mmseg's `slide` inference.

An image is resized, its aspect ratio kept; the window's logits are averaged where windows overlap,
brought to the size of the image's labels, and their softmax averaged over scales and flips. Windows
of several images share a batch of one shape. What has an image's own size is padded to a multiple
of BUCKET pixels a side, so that few programs are compiled: one for every pair of padded sizes.
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mim_jax import sharding
from mim_jax.data import picture, resample
from mim_jax.data.decode import CorruptImage
from mim_jax.data.fields import UNLABELLED
from mim_jax.evaluators.judged import Judged
from mim_jax.evaluators.pixels import count_pairs

BUCKET = 256


@dataclasses.dataclass(frozen=True)
class Sliding:
    """How the window slides.

    window: (height, width) of the objective's images.
    stride: (rows, columns) from one window to the next.
    scales: every image is seen with a shorter side of each of them times the window's shorter one,
      but with a longer side of at most `longest` times that, and never smaller than the window.
    flip: also mirrored.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    longest: float = 4.0
    flip: bool = False

    def size(self, scale: float, *, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which an image is resized."""
        short = int(min(self.window) * scale)
        long = int(self.longest * min(self.window) * scale)
        factor = min(long / max(height, width), short / min(height, width))
        factor = max(factor, self.window[0] / height, self.window[1] / width)
        return tuple(
            max(side, int(x * factor + 0.5))
            for x, side in zip((height, width), self.window, strict=True)
        )

    def starts(self, size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """First rows and first columns of the windows over an image of that size."""
        return tuple(
            [min(i * stride, side - window) for i in range(-(-(side - window) // stride) + 1)]
            for side, window, stride in zip(size, self.window, self.stride, strict=True)
        )


@dataclasses.dataclass
class Seen:
    """An image at one scale, perhaps mirrored, whose windows are on their way.

    pixels: uint8 [h,w,C]; canvas: the sum of its windows' logits, None before the first.
    """

    pixels: np.ndarray
    flipped: bool
    starts: tuple[list[int], list[int]]
    canvas: jax.Array | None = None


def confusion(judged: Judged, sliding: Sliding) -> np.ndarray:
    """The confusion int64 [true class, predicted class] over all images; a collective."""
    classes = judged.objective.num_classes
    total, pending = np.zeros((classes, classes), np.int64), None
    count = judged.batch_size // jax.process_count()
    stream, ended = _windows(judged, sliding), False
    while True:
        # Every process computes as many batches as the one that has most of them.
        batch = [] if ended else _take(stream, count)
        ended = not batch
        if not judged.total(np.int32(not ended)):
            break
        logits = _logits(judged, [window for window, *_ in batch], sliding.window, count)
        for row, (_, seen, place, image) in enumerate(batch):
            if seen.canvas is None:
                size = (*_padded(seen.pixels.shape[:2]), classes)
                seen.canvas = jnp.zeros(size, device=_device())
            seen.canvas = _add(seen.canvas, logits, row, *place)
            image.left -= 1
            if not image.left:
                if pending is not None:
                    total += jax.device_get(pending)
                pending = _judged_image(image, sliding, classes)
    if pending is not None:
        total += jax.device_get(pending)
    return judged.total(total)


@dataclasses.dataclass
class _Image:
    """An image whose windows are on their way: in how many ways it is seen, how many windows are
    left, and its labels [H,W].
    """

    ways: list[Seen]
    left: int
    labels: np.ndarray


def _windows(judged: Judged, sliding: Sliding) -> Iterator[tuple]:
    """(pixels, Seen, (first row, first column), _Image) of every window of this process."""
    own = range(jax.process_index(), len(judged.source), jax.process_count())
    height, width = sliding.window
    for image in _read(judged, sliding, own):
        for seen in image.ways:
            for y in seen.starts[0]:
                for x in seen.starts[1]:
                    yield seen.pixels[y : y + height, x : x + width], seen, (y, x), image


def _read(judged: Judged, sliding: Sliding, numbers: range) -> Iterator[_Image]:
    """The images of those numbers, in order, read ahead; unreadable ones are left out."""
    threads = max(1, judged.data.threads)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        ahead, rest = collections.deque(), iter(numbers)
        for number in rest:
            ahead.append(pool.submit(_image, judged, sliding, number))
            if len(ahead) > threads + judged.data.prefetch:
                break
        while ahead:
            image = ahead.popleft().result()
            for number in rest:
                ahead.append(pool.submit(_image, judged, sliding, number))
                break
            if image is not None:
                yield image


def _image(judged: Judged, sliding: Sliding, number: int) -> _Image | None:
    view, map_name = judged.views['images'], judged.objective.map
    place = judged.source.describe(number)
    try:
        item = picture.Item(
            judged.source[number],
            channels=judged.data.channels,
            fields=judged.source.fields,
            place=place,
        )
        pixels, labels = item.image(view.of), item.map(map_name)
    except CorruptImage as error:
        logging.warning('corrupt image: %s (%s)', place, error)
        return None
    picture.check_shape(item, map_name, pixels.shape[:2])
    ways, left = [], 0
    for scale in sliding.scales:
        size = sliding.size(scale, height=pixels.shape[0], width=pixels.shape[1])
        resized = resample.resize(pixels, size, interpolation=view.crop.interpolation)
        starts = sliding.starts(size)
        for flipped in (False, True) if sliding.flip else (False,):
            ways.append(Seen(resized[:, ::-1] if flipped else resized, flipped, starts))
            left += len(starts[0]) * len(starts[1])
    return _Image(ways, left, np.asarray(labels))


def _take(stream: Iterator, count: int) -> list:
    return [window for _, window in zip(range(count), stream, strict=False)]


def _logits(judged: Judged, windows: list, size: tuple[int, int], count: int) -> jax.Array:
    """Logits float32 [count,h,w,classes] of this process's windows, on its first device."""
    images = np.zeros((count, *size, judged.data.channels), np.uint8)
    for i, window in enumerate(windows):
        images[i] = window
    name = 'segmentation windows'
    if name not in judged.compiled:

        def logits(variables: Any, images: jax.Array) -> jax.Array:
            return judged.objective.pixel_logits(variables, images.astype('float32') / 255)

        place = sharding.batch_sharding(judged.mesh)
        judged.compiled[name] = jax.jit(sharding.on_mesh(logits, judged.mesh), out_shardings=place)
    rows = judged.compiled[name](judged.variables, judged.put({'images': images})['images'])
    # Of the rows that lie here; those along a mesh axis that does not split them are the same.
    shards = {shard.index[0].start or 0: shard.data for shard in rows.addressable_shards}
    own = [jax.device_put(shards[start], _device()) for start in sorted(shards)]
    return own[0] if len(own) == 1 else jnp.concatenate(own)


def _device() -> jax.Device:
    return jax.local_devices()[0]


@functools.partial(jax.jit, donate_argnums=0)
def _add(canvas: jax.Array, logits: jax.Array, row: int, y: int, x: int) -> jax.Array:
    """The canvas with row `row` of the logits added at (y, x)."""
    window = jax.lax.dynamic_index_in_dim(logits, row, keepdims=False)
    below = jax.lax.dynamic_slice(canvas, (y, x, 0), window.shape)
    return jax.lax.dynamic_update_slice(canvas, below + window, (y, x, 0))


def _judged_image(image: _Image, sliding: Sliding, classes: int) -> jax.Array:
    """The confusion int32 of an image all of whose windows are there."""
    size = _padded(image.labels.shape)
    total = jnp.zeros((*size, classes), device=_device())
    for seen in image.ways:
        axes = []
        for axis in (0, 1):
            shown, label = seen.pixels.shape[axis], image.labels.shape[axis]
            starts, window = seen.starts[axis], sliding.window[axis]
            mirrored = seen.flipped and axis == 1
            padded = seen.canvas.shape[axis], size[axis]
            axes.append(_line(shown, label, starts, window, mirrored, *padded))
        total = _add_probabilities(total, seen.canvas, *axes)
        seen.canvas = None
    labels = np.full(size, UNLABELLED, np.int32)
    labels[: image.labels.shape[0], : image.labels.shape[1]] = image.labels
    return _count(total, labels)


def _line(shown, label, starts, window, mirrored, canvas_side, label_side):
    """Along one axis: what a pixel of the canvas is divided by, and between which two of them the
    centre of a label's pixel lies, and where between; all padded.
    """
    overlaps = np.zeros(canvas_side)
    for start in starts:
        overlaps[start : start + window] += 1
    place = np.maximum((np.arange(label) + 0.5) * shown / label - 0.5, 0)
    place = place[::-1] if mirrored else place
    low = place.astype(np.int32)
    spare = (0, label_side - label)
    return (
        (1 / np.maximum(overlaps, 1)).astype(np.float32),
        np.pad(low, spare),
        np.pad(np.minimum(low + 1, shown - 1), spare),
        np.pad(place - low, spare).astype(np.float32),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _add_probabilities(total, canvas, rows, columns):
    """The sum of probabilities with those of a canvas at the labels' size added."""
    for axis, (share, low, high, between) in enumerate((rows, columns)):
        shape = [-1 if i == axis else 1 for i in range(3)]
        canvas = canvas * share.reshape(shape)
        between = between.reshape(shape)
        low, high = jnp.take(canvas, low, axis=axis), jnp.take(canvas, high, axis=axis)
        canvas = (1 - between) * low + between * high
    return total + jax.nn.softmax(canvas, axis=-1)


@jax.jit
def _count(total, labels):
    return count_pairs(labels[None], total.argmax(axis=-1)[None], classes=total.shape[-1])


def _padded(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-side // BUCKET) * BUCKET for side in size)
