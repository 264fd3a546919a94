"""Encoded images to uint8 arrays, with OpenCV.

The orientation tag of EXIF is ignored, as torchvision, TensorFlow and therefore every published
recipe do. An alpha channel is dropped, of an animation the first frame is taken.
"""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image

# A small file can claim any size, and decoding it would take all memory: 134 million pixels are
# more than any camera's, and 400 MB.
MAX_PIXELS = 2**27

# Which is where images are refused; Pillow would warn of two thirds of it.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

_GREY = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_COLOR = {
    1: cv2.IMREAD_COLOR_BGR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class CorruptImage(ValueError):
    """An image that cannot be read; the pipeline replaces it and counts it."""


def jpeg_size(data):
    """(height, width) of a JPEG from its header, or None if `data` is no JPEG.

    Raises:
      CorruptImage: a JPEG that breaks off in its header, has no end (a truncated file would
        otherwise be decoded with a grey rest), runs into another one, or has no or too many pixels.
    """
    if data[:2] != b'\xff\xd8':
        return None
    size = None
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise CorruptImage('JPEG header is damaged')
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:  # the picture's data begins: the header is over
            # Inside that data 0xFF is always followed by 0x00 or a restart marker, so that a
            # beginning and an end are found nowhere else behind this point.
            rest = np.frombuffer(data, np.uint8, offset=position)
            markers = rest[1:][rest[:-1] == 0xFF]
            markers = markers[(markers == 0xD8) | (markers == 0xD9)]
            if size is None or not len(markers) or markers[0] == 0xD8:
                raise CorruptImage('JPEG is truncated')
            _check_size(*size)
            return size
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if position + 9 > len(data):
                break
            size = struct.unpack_from('>HH', data, position + 5)
        position += 2 + struct.unpack_from('>H', data, position + 2)[0]
    raise CorruptImage('JPEG is truncated')


def decode(data, *, channels, reduction=1):
    """Decodes an image file.

    Args:
      data: bytes of the file; any format OpenCV knows (JPEG, PNG, BMP, WebP, GIF, TIFF, ...).
      channels: 3 (RGB) or 1 (grey).
      reduction: 1, 2, 4 or 8: a JPEG is decoded at that fraction of its size (rounded up), which
        saves most of the time. For JPEG alone.

    Returns:
      uint8 [H,W,channels].

    Raises:
      CorruptImage: the data is no readable image.
    """
    _check_header(data)
    flags = (_GREY if channels == 1 else _COLOR)[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise CorruptImage(str(error)) from error
    if image is None:
        raise CorruptImage('no readable image')
    if image.ndim == 2:
        return image[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def decode_map(data):
    """Decodes a file that holds one integer per pixel, as PNG files of class numbers do.

    Returns:
      uint8 or uint16 [H,W].

    Raises:
      CorruptImage: the data is no readable image, or one of several channels. Files with a palette
        count among these: what OpenCV gives of them are colours, not numbers.
    """
    _check_header(data)
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise CorruptImage(str(error)) from error
    if array is None:
        raise CorruptImage('no readable map')
    if array.ndim != 2:
        raise CorruptImage('a map must be a grey image, its values the numbers of the classes')
    return array


def _check_header(data):
    """Raises CorruptImage for a size that is not decoded, in any format whose header Pillow reads;
    a JPEG's is checked by `jpeg_size`, before it is chosen how much of it is decoded.
    """
    if data[:2] == b'\xff\xd8':
        return
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise CorruptImage(f'too many pixels: {error}') from error
    except Exception:  # whatever it is, OpenCV says whether it is an image
        return
    _check_size(height, width)


def _check_size(height, width):
    if min(height, width) < 1:
        raise CorruptImage(f'its header says {height}x{width} pixels')
    if height * width > MAX_PIXELS:
        raise CorruptImage(f'its header says {height}x{width} pixels, more than are decoded')
