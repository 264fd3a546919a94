"""Where a view lies in its image: boxes drawn or centred, and cutting them out."""

import dataclasses
import math

import numpy as np

from mim_jax.data import resample
from mim_jax.data.fields import UNLABELLED
from mim_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Window:
    """A view's place in an image of known size.

    box: (top, left, height, width) in pixels, fractions allowed: what is resized.
    size: (height, width) to which the box is resized.
    rows, columns: which of the resized rows and columns the view has, in order; None: all. They
      tell how an image is reflected at its edges.
    frame: (top, left, height, width) in pixels of all that the view shows, beyond the edges too.
    sees_around: resizing sees pixels around the box, as where the whole image is resized first.
    canvas: (height, width) of the view where it is larger than the resized box, which then is its
      upper left part; None: it is not.
    """

    box: tuple[float, ...]
    size: tuple[int, int]
    frame: tuple[float, ...]
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    sees_around: bool = False
    canvas: tuple[int, int] | None = None

    @property
    def shrinkage(self) -> float:
        """Pixels of the image per pixel of the view, along the side where they are fewer."""
        return min(self.box[2] / self.size[0], self.box[3] / self.size[1])

    def cut(self, image, *, reduction, interpolation, fill=0):
        """The view of an image uint8 [H,W,C] that was decoded at 1/reduction of its size; what
        is missing has the colour `fill`."""
        box = tuple(side / reduction for side in self.box) if reduction > 1 else self.box
        image = resample.resize(
            image, self.size, box=box, interpolation=interpolation, sees_around=self.sees_around
        )
        return self._padded(self._reflected(image), fill)

    def nearest(self, array, *, of):
        """The view of a map [H',W'] that lies over an image of size `of`: what is under the centre
        of each pixel."""
        places = []
        for axis in (0, 1):
            start, length, count = self.box[axis], self.box[axis + 2], self.size[axis]
            scale = array.shape[axis] / of[axis]
            centres = start + (np.arange(count) + 0.5) * length / count
            places.append((scale * centres).astype(np.int64))
        return self._padded(
            self._reflected(array[places[0][:, None], places[1][None, :]]), UNLABELLED
        )

    def _padded(self, array, fill):
        if self.canvas is None:
            return array
        out = np.empty((*self.canvas, *array.shape[2:]), array.dtype)
        out[:] = fill
        out[: array.shape[0], : array.shape[1]] = array
        return out

    def _reflected(self, array):
        if self.rows is None:
            return array
        return np.ascontiguousarray(array[self.rows[:, None], self.columns[None, :]])


def choose(crop, rng, *, height, width, size, labels=None):
    """The window of a crop in an image of height x width pixels, for a view of `size`.

    labels: function window -> what a map of classes shows there, or None; mode 'scaled' asks it.

    Raises:
      UserError: not of `size` where it must be.
    """
    if crop.mode == 'scaled':
        return scaled_window(rng, height=height, width=width, size=size, crop=crop, labels=labels)
    if crop.mode == 'simple':
        return simple_window(
            rng, height=height, width=width, size=size, resize=crop.resize, pad=crop.pad
        )
    if crop.mode == 'random':
        box = random_box(rng, height=height, width=width, scale=crop.scale, ratio=crop.ratio)
    elif crop.mode == 'centre':
        box = centre_box(height=height, width=width, size=size, share=crop.share)
    else:
        if crop.mode == 'none' and (height, width) != tuple(size):
            raise UserError(
                f'an image has {height}x{width} pixels (height x width), a view of it {size[0]}x'
                f"{size[1]}: with config.data.crop.mode 'none' they must be equal; set "
                f"config.data.image_size, or the mode to 'resize' or 'random'"
            )
        box = 0, 0, height, width
    return Window(box, tuple(size), frame=box)


def random_box(rng, *, height, width, scale, ratio):
    """A random box of the given area share and aspect ratio, as torchvision's RandomResizedCrop.

    Ten tries; then the largest centred box whose aspect ratio is within `ratio`.

    Returns:
      (top, left, height, width) in whole pixels.
    """
    log_ratio = np.log(ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return top, left, h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(*, height, width, size, share):
    """The centred box of `size`'s aspect ratio with `share` of the largest such box's sides.

    Returns:
      (top, left, height, width) in whole pixels.
    """
    step = share * min(height / size[0], width / size[1])
    h, w = max(1, round(step * size[0])), max(1, round(step * size[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def simple_window(rng, *, height, width, size, resize, pad):
    """A window of `size` anywhere in the resized, reflected image: torchvision's Resize and
    RandomCrop with reflect padding, in one resampling of the part that is seen.

    The image is resized such that it covers `resize` times `size`, one side exactly; the other
    side is rounded down. A reflection does not repeat the pixels of the edge.
    """
    least = [round(resize * side) for side in size]
    if least[0] * width >= least[1] * height:
        whole = least[0], max(least[1], int(least[0] * width / height))
    else:
        whole = max(least[0], int(least[1] * height / width)), least[1]
    starts, places = [], []
    for side, seen in zip(whole, size, strict=True):
        start = int(rng.integers(0, side + 2 * pad - seen + 1))
        starts.append(start - pad)
        places.append(np.pad(np.arange(side), pad, mode='reflect')[start : start + seen])
    scale = height / whole[0], width / whole[1]
    first = [int(place.min()) for place in places]
    count = tuple(int(place.max()) + 1 - f for place, f in zip(places, first, strict=True))
    rows, columns = (place - f for place, f in zip(places, first, strict=True))
    return Window(
        box=(first[0] * scale[0], first[1] * scale[1], count[0] * scale[0], count[1] * scale[1]),
        size=count,
        frame=(starts[0] * scale[0], starts[1] * scale[1], size[0] * scale[0], size[1] * scale[1]),
        rows=rows,
        columns=columns,
        sees_around=True,
    )


# How often a window is drawn again that one class has for itself.
RETRIES = 10


def scaled_window(rng, *, height, width, size, crop, labels=None):
    """A window of `size` in the image at a random scale, aspect ratio kept: mmseg's Resize,
    RandomCrop with `cat_max_ratio`, and Pad.

    A factor is drawn from `crop.factor`. The image is brought to a shorter side of factor times the
    shorter one of `size`, unless its longer side then were above `crop.longest` times that. Where
    it is smaller than the window it fills the upper left part. A window in which one class has
    `crop.max_share` of the labelled pixels or more is drawn again, up to ten times.
    """
    factor = rng.uniform(*crop.factor)
    short, long = int(min(size) * factor), int(crop.longest * min(size) * factor)
    scale = min(long / max(height, width), short / min(height, width))
    whole = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    steps = height / whole[0], width / whole[1]
    seen = tuple(min(pair) for pair in zip(whole, size, strict=True))

    def draw():
        starts = [int(rng.integers(0, w - s + 1)) for w, s in zip(whole, seen, strict=True)]
        corner = starts[0] * steps[0], starts[1] * steps[1]
        return Window(
            box=(*corner, seen[0] * steps[0], seen[1] * steps[1]),
            size=seen,
            frame=(*corner, size[0] * steps[0], size[1] * steps[1]),
            sees_around=True,
            canvas=None if seen == tuple(size) else tuple(size),
        )

    window = draw()
    for _ in range(RETRIES if crop.max_share < 1 else 0):
        shown = labels(window) if labels else None
        if shown is None or _is_mixed(shown, crop.max_share):
            break
        window = draw()
    return window


def _is_mixed(labels, share):
    """Whether no class has that share of the labelled pixels, and there is more than one."""
    counts = np.bincount(labels.ravel(), minlength=UNLABELLED + 1)
    counts[UNLABELLED] = 0
    return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < share
