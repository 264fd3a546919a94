"""The operations of RandAugment on a picture, on the host, with Pillow.

Each is a function (image uint8 [H,W,C], argument, where) -> uint8 [H,W,C], C 3 or 1; `where` is a
`Resampling`, read by those that move pixels. Those without a strength ignore the argument.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How pixels are moved.

    interpolation: one of FILTERS. fill: levels 0 to 255, one per channel, of what comes into the
    picture from outside of it.
    """

    interpolation: str
    fill: tuple[int, ...]

    @property
    def options(self):
        """Keywords of Pillow's functions."""
        fill = self.fill if len(self.fill) > 1 else self.fill[0]
        return {'resample': FILTERS[self.interpolation], 'fillcolor': fill}


def _on_pillow(function):
    """Makes an operation of a function on Pillow images."""

    def operation(image, argument, where):
        mode_of_grey = image.shape[2] == 1
        picture = Image.fromarray(image[:, :, 0] if mode_of_grey else image)
        result = np.array(function(picture, argument, where))
        return result[:, :, None] if mode_of_grey else result

    operation.__name__ = function.__name__
    operation.__doc__ = function.__doc__
    return operation


@_on_pillow
def auto_contrast(image, _, where):
    """Each channel stretched until its darkest level is 0 and its lightest 255."""
    return ImageOps.autocontrast(image)


@_on_pillow
def equalize(image, _, where):
    """Each channel's levels moved such that all are about equally frequent."""
    return ImageOps.equalize(image)


@_on_pillow
def invert(image, _, where):
    """255 minus each level."""
    return ImageOps.invert(image)


@_on_pillow
def posterize(image, bits, where):
    """The `bits` most significant bits of each level are kept; without any it is black."""
    # Pillow's own function refuses 0 bits in newer versions; a magnitude of 10 asks for them.
    return _by_table(image, [level >> (8 - bits) << (8 - bits) for level in range(256)])


@_on_pillow
def solarize(image, threshold, where):
    """Levels from `threshold` on are inverted."""
    return ImageOps.solarize(image, threshold)


@_on_pillow
def solarize_add(image, addend, where):
    """`addend` is added to the levels below 128, which end at 255."""
    table = [min(255, level + addend) if level < 128 else level for level in range(256)]
    return _by_table(image, table)


@_on_pillow
def color(image, factor, where):
    """Between the grey picture (0), the picture (1) and beyond."""
    return ImageEnhance.Color(image).enhance(factor)


@_on_pillow
def contrast(image, factor, where):
    """Between its mean grey (0), the picture (1) and beyond."""
    return ImageEnhance.Contrast(image).enhance(factor)


@_on_pillow
def brightness(image, factor, where):
    """Between black (0), the picture (1) and beyond."""
    return ImageEnhance.Brightness(image).enhance(factor)


@_on_pillow
def sharpness(image, factor, where):
    """Between the smoothed picture (0), the picture (1) and beyond."""
    return ImageEnhance.Sharpness(image).enhance(factor)


@_on_pillow
def rotate(image, degrees, where):
    """Turned about its centre, counter-clockwise."""
    options = where.options
    return image.rotate(degrees, resample=options['resample'], fillcolor=options['fillcolor'])


@_on_pillow
def shear_x(image, factor, where):
    """Row y shows what lies `factor` * y to the right."""
    return _affine(image, (1, factor, 0, 0, 1, 0), where)


@_on_pillow
def shear_y(image, factor, where):
    """Column x shows what lies `factor` * x below."""
    return _affine(image, (1, 0, 0, factor, 1, 0), where)


@_on_pillow
def translate_x(image, share, where):
    """Shows what lies `share` of the width to the right."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), where)


@_on_pillow
def translate_y(image, share, where):
    """Shows what lies `share` of the height below."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), where)


def _by_table(image, table):
    """Each level of each channel replaced by the table's."""
    return image.point(table * len(image.getbands()))


def _affine(image, coefficients, where):
    """(x, y) of the result shows (a x + b y + c, d x + e y + f) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, **where.options)
