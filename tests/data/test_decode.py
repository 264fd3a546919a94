"""Decoding against Pillow for every format, and what counts as corrupt."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import decode
from mim_jax.data.decode import CorruptImage

FORMATS = ['JPEG', 'PNG', 'BMP', 'WEBP', 'GIF', 'TIFF', 'PPM']


def picture(height=97, width=130):
    y, x = np.mgrid[:height, :width]
    layers = [x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 9)]
    return Image.fromarray(np.stack(layers, -1).astype(np.uint8))


def save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def open_with_pillow(data, mode='RGB'):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode)).astype(int)


@pytest.mark.parametrize('kind', FORMATS)
def test_formats(kind):
    data = save(picture(), kind)
    colour = decode.decode(data, channels=3)
    assert colour.shape == (97, 130, 3) and colour.dtype == np.uint8
    assert np.abs(colour - open_with_pillow(data)).max() <= 1
    grey = decode.decode(data, channels=1)
    assert grey.shape == (97, 130, 1)
    assert np.abs(grey[:, :, 0] - open_with_pillow(data, 'L')).max() <= 1


@pytest.mark.parametrize('mode, kind', [('L', 'PNG'), ('RGBA', 'PNG'), ('P', 'PNG'), ('LA', 'PNG'),
                                        ('L', 'JPEG'), ('CMYK', 'JPEG')])  # fmt: skip
def test_other_colour_models_become_rgb(mode, kind):
    data = save(picture().convert(mode), kind)
    image = decode.decode(data, channels=3)
    assert image.shape == (97, 130, 3)
    assert np.abs(image - open_with_pillow(data)).max() <= 1


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'quality': 30, 'subsampling': 0}])
def test_jpeg_size_from_the_header(options):
    data = save(picture(), 'JPEG', exif=Image.Exif().tobytes(), comment=b'hello', **options)
    assert decode.jpeg_size(data) == (97, 130)
    assert decode.jpeg_size(data + b'trailing bytes') == (97, 130)
    assert decode.jpeg_size(save(picture(), 'PNG')) is None


@pytest.mark.parametrize('reduction', [2, 4, 8])
@pytest.mark.parametrize('channels', [1, 3])
def test_reduced_jpeg_is_the_mean_over_cells(reduction, channels):
    data = save(picture(96, 128), 'JPEG', quality=95)
    image = decode.decode(data, channels=channels, reduction=reduction)
    full = open_with_pillow(data, 'RGB' if channels == 3 else 'L').reshape(96, 128, channels)
    r = reduction
    cells = full.reshape(96 // r, r, 128 // r, r, channels).mean((1, 3))
    assert np.abs(image - cells).mean() < 1.5


def test_exif_orientation_is_ignored_as_in_pillow_without_transpose():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    data = save(picture(), 'JPEG', exif=exif.tobytes())
    image = decode.decode(data, channels=3)
    assert image.shape == (97, 130, 3)
    assert np.abs(image - open_with_pillow(data)).max() <= 1


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('share', [0.02, 0.3, 0.7, 0.98])
def test_truncated_files_are_corrupt(kind, share):
    data = save(picture(), kind)
    data = data[: int(len(data) * share)]
    with pytest.raises(CorruptImage):
        decode.jpeg_size(data)
        decode.decode(data, channels=3)


@pytest.mark.parametrize('data', [b'', b'\xff\xd8', b'no image at all', bytes(1000), b'\xff' * 99])
def test_other_bytes_are_corrupt(data):
    with pytest.raises(CorruptImage):
        decode.jpeg_size(data)
        decode.decode(data, channels=3)


def header_says(kind, height, width):
    """A small file whose header was changed."""
    data = bytearray(save(picture(), kind))
    if kind == 'PNG':
        data[16:24] = struct.pack('>II', width, height)
        data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    else:
        place = data.find(b'\xff\xc0')
        data[place + 5 : place + 9] = struct.pack('>HH', height, width)
    return bytes(data)


@pytest.mark.parametrize('size', [(0, 0), (0, 130), (30_000, 30_000)])
def test_a_size_that_is_none_or_too_large_is_corrupt(size):
    said = f'{size[0]}x{size[1]} pixels'
    with pytest.raises(CorruptImage, match=said):
        decode.jpeg_size(header_says('JPEG', *size))
    for read in (lambda data: decode.decode(data, channels=3), decode.decode_map):
        with pytest.raises(CorruptImage, match='pixels|no readable'):
            read(header_says('PNG', *size))
    # The change itself is no fault.
    assert decode.decode(header_says('PNG', 97, 130), channels=3).shape == (97, 130, 3)


def test_a_truncated_jpeg_with_another_behind_it_is_corrupt():
    data = save(picture(), 'JPEG')
    assert decode.jpeg_size(data + data) == (97, 130)
    with pytest.raises(CorruptImage, match='truncated'):
        decode.jpeg_size(data[:-300] + data)
