"""One element of a source to the view a model sees: which box, decoded, resized."""

import math

import cv2
import numpy as np

from mim_jax.data import decode, resample
from mim_jax.errors import UserError

# After scaled decoding a box has at least that many pixels per pixel of the result.
SCALED_DECODING_MARGIN = 1.5


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


def view(element, choose_box, *, size, channels, interpolation):
    """Decodes, crops and resizes one element of a source.

    Args:
      element: what a `Source` gives.
      choose_box: (height, width) of the image -> (top, left, height, width), or None for no
        resizing: the image must have `size` then.
      size: (height, width) of the result.
      channels: 3 or 1.
      interpolation: 'bicubic' or 'bilinear'.

    Returns:
      uint8 [*size, channels], and the mask uint8 [*size] or None.

    Raises:
      decode.CorruptImage: unreadable.
      UserError: not of `size` where it must be.
    """
    data = element['image']
    encoded = not isinstance(data, np.ndarray)
    full = decode.jpeg_size(data) if encoded else data.shape[:2]
    if full is None:
        data, encoded = decode.decode(data, channels=channels), False
        full = data.shape[:2]
    if choose_box is None:
        if tuple(full) != tuple(size):
            raise UserError(
                f'an image has {full[0]}x{full[1]} pixels (height x width), '
                f'config.data.image_size is {size[0]}x{size[1]}: '
                f"set config.data.crop.mode to 'resize' or 'random'"
            )
        box = (0, 0, *size)
    else:
        box = choose_box(height=full[0], width=full[1])
    if encoded:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size: as small as leaves enough for
        # the resizing to be Pillow's in all but the faintest detail.
        spare = min(box[2] / size[0], box[3] / size[1]) / SCALED_DECODING_MARGIN
        reduction = next((r for r in (8, 4, 2) if spare >= r), 1)
        image = decode.decode(data, channels=channels, reduction=reduction)
        # The header may lie about the size; what was decoded counts.
        if abs(image.shape[0] * reduction - full[0]) >= reduction + 1:
            raise decode.CorruptImage('JPEG header and picture differ in size')
        inner = tuple(side / reduction for side in box) if reduction > 1 else box
    else:
        image, inner = _with_channels(data, channels), box
    image = resample.resize(image, size, box=inner, interpolation=interpolation)
    mask = element.get('mask')
    return image, None if mask is None else _nearest(mask, box, size)


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


def _nearest(mask, box, size):
    """The mask under each result pixel's centre."""
    rows = (box[0] + (np.arange(size[0]) + 0.5) * box[2] / size[0]).astype(np.int64)
    columns = (box[1] + (np.arange(size[1]) + 0.5) * box[3] / size[1]).astype(np.int64)
    return mask[rows[:, None], columns[None, :]]
