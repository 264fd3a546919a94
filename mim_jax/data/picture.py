"""One view of one item: decoded, cropped, resized, transformed."""

import contextlib
import dataclasses

import cv2
import numpy as np

from mim_jax.data import crops, decode, resample
from mim_jax.data.fields import UNLABELLED, find
from mim_jax.errors import UserError

# After scaled decoding a box has at least that many pixels per pixel of the result.
SCALED_DECODING_MARGIN = 1.5


@dataclasses.dataclass(frozen=True)
class Picture:
    """What a host transform is given and gives back, all of it of the view's size.

    image: uint8 [h,w,C].
    maps: name -> integer array [h,w], the view's maps.
    box: (top, left, height, width) as shares of the whole image. A transform that moves what is
      seen moves maps and box with it; `cropped` does.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    box: tuple[float, ...]

    @property
    def inside(self):
        """Slices (rows, columns) of what shows the image, and not what lies beyond its edges."""
        slices = []
        for axis, count in enumerate(self.image.shape[:2]):
            start, length = self.box[axis], self.box[axis + 2]
            ends = (
                (end - start) * count / length for end in (max(start, 0), min(start + length, 1))
            )
            slices.append(slice(*(round(end) for end in ends)))
        return tuple(slices)

    def cropped(self, box, *, interpolation='bicubic'):
        """A part of this picture, (top, left, height, width) in its pixels, at its size."""
        size = self.image.shape[:2]
        window = crops.Window(tuple(box), size, frame=tuple(box))
        top, left, height, width = self.box
        return Picture(
            image=resample.resize(self.image, size, box=box, interpolation=interpolation),
            maps={name: window.nearest(m, of=size) for name, m in self.maps.items()},
            box=(
                top + height * box[0] / size[0],
                left + width * box[1] / size[1],
                height * box[2] / size[0],
                width * box[3] / size[1],
            ),
        )


class Item:
    """An item of a source, of which every part is decoded when asked for, and once.

    Args:
      item: `source[i]`.
      channels: of its images, 3 or 1.
      fields: of the source; of a map of classes they say what its numbers are.
      place: what a person is told of where the item lies.
    """

    def __init__(self, item, *, channels, fields=(), place='an item'):
        self.place = place
        self._item = item
        self._channels = channels
        self._fields = fields
        self._headers = {}
        self._decoded = {}

    def jpeg_size(self, name):
        """(height, width) of the image `name` by its header; None if it is no JPEG."""
        if name not in self._headers:
            data = self._item[name]
            array = isinstance(data, np.ndarray)
            with _naming(name):
                self._headers[name] = None if array else decode.jpeg_size(data)
        return self._headers[name]

    def size(self, name):
        """(height, width) of the image `name`."""
        return self.jpeg_size(name) or self.image(name).shape[:2]

    def image(self, name, *, reduction=1):
        """uint8 [H,W,channels]; a JPEG at 1/reduction of its size. Raises CorruptImage."""
        if (name, reduction) not in self._decoded:
            data = self._item[name]
            if isinstance(data, np.ndarray):
                image = _with_channels(data, self._channels)
            else:
                with _naming(name):
                    image = decode.decode(data, channels=self._channels, reduction=reduction)
            self._decoded[name, reduction] = image
        return self._decoded[name, reduction]

    def map(self, name):
        """Integers [H,W]; of a map of classes 0..num_classes-1 or 255.

        Raises CorruptImage, and UserError for numbers that are no classes.
        """
        if name not in self._decoded:
            data = self._item[name]
            with _naming(name):
                encoded = not isinstance(data, np.ndarray)
                array = decode.decode_map(data) if encoded else data
            self._decoded[name] = self._classes(array, find(self._fields, name))
        return self._decoded[name]

    def _classes(self, array, field):
        if field is None or field.num_classes is None:
            return array
        numbers = array
        if field.reduce_zero_label:
            unlabelled = (array == 0) | (array == UNLABELLED)
            array = np.where(unlabelled, UNLABELLED, array.astype(np.int32) - 1)
        wrong = (array < 0) | ((array >= field.num_classes) & (array != UNLABELLED))
        if wrong.any():
            first = int(field.reduce_zero_label)
            raise UserError(
                f'the {field.name} of {self.place} holds the number {numbers[wrong][0]}, but '
                f'classes are {first} to {field.num_classes - 1 + first} (255: none): set '
                f'config.data.source.map_classes, or mend the file'
            )
        return array


@contextlib.contextmanager
def _naming(name):
    """Says which part of an item is corrupt, where it is not the image itself."""
    try:
        yield
    except decode.CorruptImage as error:
        raise (error if name == 'image' else decode.CorruptImage(f'its {name}: {error}')) from error


def show(item, view, rng, *, fill=0):
    """The `Picture` that a view gives of an `Item`; what lies beyond the image has the colour
    `fill`, one number or one per channel.

    Raises:
      decode.CorruptImage: unreadable.
      UserError: an image that is not of the view's size where it must be, a map that is not of its
        image's shape or holds numbers that are no classes.
    """
    full = item.size(view.of)
    for name in view.maps:
        check_shape(item, name, full)

    def labels(window):
        return window.nearest(item.map(view.maps[0]), of=full) if view.maps else None

    window = crops.choose(
        view.crop, rng, height=full[0], width=full[1], size=view.image_size, labels=labels
    )
    reduction = 1
    if item.jpeg_size(view.of) and view.crop.interpolation in resample.ANTIALIASED:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size: as small as leaves enough for
        # the resizing to be Pillow's in all but the faintest detail.
        spare = window.shrinkage / SCALED_DECODING_MARGIN
        reduction = next((r for r in (8, 4, 2) if spare >= r), 1)
    image = item.image(view.of, reduction=reduction)
    # A JPEG's header may lie about the size; what was decoded counts.
    if abs(image.shape[0] * reduction - full[0]) >= reduction + 1:
        raise decode.CorruptImage('JPEG header and picture differ in size')
    picture = Picture(
        image=window.cut(
            image, reduction=reduction, interpolation=view.crop.interpolation, fill=fill
        ),
        maps={name: window.nearest(item.map(name), of=full) for name in view.maps},
        box=tuple(side / full[axis % 2] for axis, side in enumerate(window.frame)),
    )
    for transform in view.transforms:
        picture = transform(rng, picture)
    return picture


def check_shape(item, name, full):
    """Raises UserError unless a map has the shape of its image, within a pixel of either."""
    height, width = item.map(name).shape
    if abs(height * full[1] - width * full[0]) > max(height, width, *full):
        raise UserError(
            f'the {name} of {item.place} has {height}x{width} pixels (height x width), its image '
            f'{full[0]}x{full[1]}: a map must have the size of its image, or its aspect ratio at '
            f'least; mend the file, or take the image out'
        )


def _with_channels(image, channels):
    """uint8 [H,W] or [H,W,C] to [H,W,channels]."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1:
        return np.repeat(image, channels, axis=2)
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(image[:, :, :3]), cv2.COLOR_RGB2GRAY)[:, :, None]
    return np.ascontiguousarray(image[:, :, :channels])
