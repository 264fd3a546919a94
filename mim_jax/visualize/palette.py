"""Colours that readers with red-green blindness tell apart too."""

import functools

import numpy as np

# The first ones: orange, sky blue, bluish green, yellow, blue, vermilion, reddish purple.
# Source: Okabe and Ito, "Color Universal Design" (2008).
OKABE_ITO = ('e69f00', '56b4e9', '009e73', 'f0e442', '0072b2', 'd55e00', 'cc79a7')
# What a dichromat sees, in linear RGB, for deuteranopia and protanopia.
# Source: Machado, Oliveira and Fernandes (IEEE TVCG 2009), severity 1.
DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
PROTANOPIA = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
# Linear RGB to cone responses, and their cube roots to OKLab, where distances are about those that
# are seen. Source: Ottosson, "A perceptual color space for image processing" (2020).
CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
# Neither the white of borders, nor black, nor the grey of hidden patches.
TAKEN = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.52, 0.53, 0.55))
# Of the colours to choose from: levels per channel, lightness and chroma in OKLab.
LEVELS, LIGHTNESS, LEAST_CHROMA = 13, (0.3, 0.95), 0.08


@functools.lru_cache
def distinct(count: int) -> np.ndarray:
    """`count` colours float32 [count,3] in [0, 1], the most unlike ones first.

    Behind OKABE_ITO each is that whose smallest distance to those before it is the largest; a
    distance is the least of those in OKLab that trichromats, deuteranopes and protanopes see.
    """
    first = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in OKABE_ITO]) / 255
    levels = np.linspace(0, 1, LEVELS)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), axis=-1).reshape(-1, 3)
    lightness, *chroma = np.moveaxis(_seen(colors)[0], -1, 0)
    light = (lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1])
    colors = colors[light & (np.hypot(*chroma) > LEAST_CHROMA)]
    chosen, seen = list(first), _seen(colors)

    def apart(color):
        return np.linalg.norm(seen - _seen(color[None]), axis=-1).min(axis=0)

    nearest = np.min([apart(np.array(color)) for color in (*TAKEN, *first)], axis=0)
    while len(chosen) < count:
        chosen.append(colors[nearest.argmax()])
        nearest = np.minimum(nearest, apart(chosen[-1]))
    return np.float32(chosen[:count])


def of_components(components: np.ndarray) -> np.ndarray:
    """Three numbers in [0, 1] as a colour float32 [...,3], by how well everyone sees a difference:
    the first is lightness, the second goes from blue to yellow, the third from green to red.
    """
    light, yellow, red = np.moveaxis(np.asarray(components, np.float64), -1, 0)
    lab = np.stack([0.35 + 0.55 * light, 0.24 * (red - 0.5), 0.24 * (yellow - 0.5)], axis=-1)
    linear = (lab @ np.linalg.inv(OKLAB).T) ** 3 @ np.linalg.inv(CONES).T
    linear = np.clip(linear, 0, 1)
    bright = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, bright).astype(np.float32)


def _seen(colors):
    """OKLab [3,N,3] of sRGB colours [N,3], as seen by trichromats, deuteranopes and protanopes."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    kinds = [linear] + [linear @ np.transpose(kind) for kind in (DEUTERANOPIA, PROTANOPIA)]
    cones = np.clip(kinds, 0, 1) @ np.transpose(CONES)
    return np.cbrt(cones) @ np.transpose(OKLAB)
