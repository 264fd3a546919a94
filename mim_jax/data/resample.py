"""Resizing with antialiasing, as Pillow defines it (its `resample` for 8-bit images).

OpenCV's cubic does not antialias and has another kernel (a = -0.75). Pillow stretches the kernel
(a = -0.5) by the scale when it shrinks an image, in two passes with 8-bit values between them.

The package cykooz-resizer does the same with vector instructions, for 8-bit images and antialiased
kernels. For all else, and where there is no such package (`setup.py`), each pass is a sparse matrix
product, so the cost follows the kernel's taps and not the image's side.
"""

import cv2
import numpy as np
from scipy.sparse import csr_array

try:
    import cykooz_resizer as vectorized
except ImportError:
    vectorized = None

SUPPORT = {'bicubic': 2.0, 'bilinear': 1.0, 'linear': 1.0}
ANTIALIASED = ('bicubic', 'bilinear')


def resize(image, size, *, box=None, interpolation='bicubic', sees_around=False):
    """Resizes a part of an image.

    Args:
      image: uint8 [H,W,C], or float32 from 0 to 1.
      size: (height, width) of the result.
      box: (top, left, height, width) in pixels, fractions allowed; None: all.
      interpolation: 'bicubic' or 'bilinear'; or 'linear', which is not antialiased: between the
        four nearest pixels however much the image shrinks, as OpenCV's.
      sees_around: the kernel reaches beyond the box, as if the whole image were resized and then
        cropped (Pillow's own `box`); otherwise as if it were cropped to the box's pixels first.

    Returns:
      [height, width, C] of the image's dtype; values beyond its range, where the cubic kernel
      overshoots, are cut off after each pass.
    """
    top, left, height, width = box or (0, 0, *image.shape[:2])
    y, x = int(top), int(left)
    if (height, width) == tuple(size) and (top, left) == (y, x):
        return np.ascontiguousarray(image[y : y + size[0], x : x + size[1]])
    bottom, right = top + height, left + width
    if sees_around:
        reach = 1.0 + SUPPORT[interpolation] * max(1.0, height / size[0], width / size[1])
        y, x = max(0, int(top - reach)), max(0, int(left - reach))
        bottom, right = bottom + reach, right + reach
    image = image[y : int(np.ceil(bottom)), x : int(np.ceil(right))]
    box = top - y, left - x, height, width
    known = image.dtype == np.uint8 and image.shape[2] in (1, 3) and interpolation in ANTIALIASED
    by = _by_vectors if vectorized and known else _by_matrices
    return by(image, size, box, interpolation)


def _by_vectors(image, size, box, interpolation):
    """As Pillow, columns first; the package by itself would do rows first."""
    kinds = {1: vectorized.PixelType.U8, 3: vectorized.PixelType.U8x3}
    filters = vectorized.FilterType
    kernel = {'bicubic': filters.catmull_rom, 'bilinear': filters.bilinear}[interpolation]
    algorithm = vectorized.ResizeAlg.convolution(kernel)
    rows, columns, channels = image.shape
    top, left, height, width = box
    # Of a box's fractions the sum may lie beyond the image by a rounding.
    boxes = (
        vectorized.CropBox(left, 0, min(width, columns - left), rows),
        vectorized.CropBox(0, top, size[1], min(height, rows - top)),
    )
    resizer, kind = vectorized.Resizer(), kinds[channels]
    data = vectorized.ImageData(columns, rows, kind, image.tobytes())
    for seen, shape in zip(boxes, ((size[1], rows), (size[1], size[0])), strict=True):
        out = vectorized.ImageData(*shape, kind)
        options = vectorized.ResizeOptions(algorithm, use_alpha=False, crop_box=seen)
        resizer.resize(data, out, options)
        data = out
    return np.array(np.frombuffer(data.get_buffer(), np.uint8)).reshape(*size, channels)


def _by_matrices(image, size, box, interpolation):
    rows, columns, channels = image.shape
    top, left, height, width = box
    horizontal = _matrix(columns, size[1], left, width, interpolation)
    vertical = _matrix(rows, size[0], top, height, interpolation)
    image = _along_first(horizontal, _transpose(image))
    return _along_first(vertical, _transpose(image)).reshape(*size, channels)


def _transpose(image):
    """[H,W,C] to [W,H,C]; cv2.transpose drops a single channel's axis."""
    return cv2.transpose(image).reshape(image.shape[1], image.shape[0], image.shape[2])


def _along_first(matrix, image):
    """The matrix times the first axis of [N,M,C], uint8 (rounded) or float32 from 0 to 1."""
    n, m, c = image.shape
    out = matrix @ image.reshape(n, m * c).astype(np.float32)
    if image.dtype == np.float32:
        return np.clip(out, 0.0, 1.0).reshape(-1, m, c)
    np.maximum(out, 0, out=out)  # the cubic kernel undershoots; the next line takes |x|
    # It also rounds halves to even where Pillow rounds them up.
    return cv2.convertScaleAbs(out, beta=1e-4).reshape(-1, m, c)


def _matrix(num_in, num_out, start, length, interpolation):
    """Sparse [num_out, num_in] float32 of the weights for the stretch [start, start + length]."""
    scale = length / num_out
    stretch = max(scale, 1.0) if interpolation in ANTIALIASED else 1.0
    support = SUPPORT[interpolation] * stretch
    centre = start + (np.arange(num_out) + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int32), num_in)
    taps = low[:, None] + np.arange((high - low).max(), dtype=np.int32)
    weights = _kernel((taps + 0.5 - centre[:, None]) / stretch, interpolation)
    weights[taps >= high[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    # Taps beyond the last pixel have weight 0; their index only has to be valid.
    columns = np.minimum(taps, num_in - 1).ravel()
    offsets = np.arange(num_out + 1, dtype=np.int32) * taps.shape[1]
    return csr_array((weights.astype(np.float32).ravel(), columns, offsets), (num_out, num_in))


def _kernel(x, interpolation):
    x = np.abs(x)
    if interpolation in ('bilinear', 'linear'):
        return np.maximum(1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
