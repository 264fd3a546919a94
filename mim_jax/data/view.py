"""What a method sees of an item: which part of which field, at which size, in which colours."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

from mim_jax.ranges import (
    AtLeastOne,
    NotNegative,
    Pixels,
    Positive,
    PositiveShare,
    Range,
    Share,
    check_ordered,
)

CROPS = ('random', 'simple', 'scaled', 'resize', 'centre', 'none')
INTERPOLATIONS = ('bicubic', 'bilinear', 'linear')


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of an image that a view shows.

    `mode` is
      'random': a random resized crop, by `scale` and `ratio`;
      'simple': the image is resized until its shorter side is the view's times `resize`, padded by
        `pad` pixels of its reflection, and a window of the view's size drawn from it;
      'scaled': the image is resized, its aspect ratio kept, until its shorter side is the view's
        times a number from `factor` (its longer side at most `longest` times as long), and a window
        of the view's size drawn from it, again where one class of the view's first map has
        `max_share` of it or more; what is missing to the right and below has the mean colour and no
        class (mmseg's recipe for segmentation);
      'resize': the whole image, brought to the size, aspect ratio not kept;
      'centre': the largest centred box of the view's aspect ratio, `share` of each of its sides;
      'none': images must already have the size; the fastest way for 32x32 sets.
    Each mode reads its own fields; `interpolation` is read by all but 'none'.
    """

    mode: str = 'random'
    scale: tuple[PositiveShare, ...] = (0.2, 1.0)  # share of the image's area, smallest and largest
    ratio: tuple[Positive, ...] = (3 / 4, 4 / 3)  # width / height, smallest and largest
    resize: AtLeastOne = 1.0  # 256 / 224: "resize to 256, crop 224"
    pad: Pixels = 0
    factor: tuple[Positive, ...] = (0.5, 2.0)
    longest: AtLeastOne = 4.0
    max_share: PositiveShare = 0.75
    share: PositiveShare = 1.0
    interpolation: str = 'bicubic'  # 'linear': without antialiasing, as OpenCV's

    def __post_init__(self):
        if self.mode not in CROPS:
            raise ValueError(f'mode is {self.mode!r}, must be one of {", ".join(CROPS)}')
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f'interpolation is {self.interpolation!r}, '
                f'must be one of {", ".join(INTERPOLATIONS)}'
            )
        check_ordered(self, 'scale', 'ratio', 'factor')


@dataclasses.dataclass(frozen=True)
class Colors:
    """Changes of colour, drawn for each image of a view on the device.

    brightness, contrast, saturation: factors are drawn from U[max(0, 1 - x), 1 + x].
    hue: turned by a share of the circle from U[-x, x], x at most 0.5.
    probability: with which all four of these happen, else none.
    grey, solarize, blur: probabilities of a grey image, of inverting what is at least half bright,
      of a Gaussian blur.
    blur_sigma: (low, high) in pixels, drawn uniformly.
    one_of: exactly one of grey, solarize and blur happens, drawn with their numbers as weights
      (LUT and DeiT III: 1, 1, 1).
    """

    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    probability: Share = 1.0
    grey: NotNegative = 0.0
    solarize: NotNegative = 0.0
    blur: NotNegative = 0.0
    blur_sigma: tuple[Positive, ...] = (0.1, 2.0)
    one_of: bool = False

    def __post_init__(self):
        rest = self.grey, self.solarize, self.blur
        if max(rest) > 1 and not self.one_of:
            raise ValueError(
                f'grey, solarize and blur are {rest}, must be probabilities (with one_of=true: '
                f'weights)'
            )
        if self.one_of and not sum(rest):
            raise ValueError('one_of draws among grey, solarize and blur, all of which are 0')
        check_ordered(self, 'blur_sigma')


# What BYOL's two views have (Grill et al., NeurIPS 2020), as many methods after it.
JITTER = Colors(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8)
FIRST_COLORS = dataclasses.replace(JITTER, grey=0.2, blur=1.0)
SECOND_COLORS = dataclasses.replace(JITTER, grey=0.2, blur=0.1, solarize=0.2)


@dataclasses.dataclass(frozen=True)
class View:
    """One picture that a batch holds of every item; made by `DataConfig.view`.

    crop: which part of the image, chosen and resized on the host.
    image_size: (height, width) in pixels.
    flip: probability of a horizontal flip, on the device.
    colors: changes of colour, on the device.
    of: the field that it shows, of kind image.
    like: the name of another view, whose pixels and flip this one has; only the colours are its
      own. Nothing of it is read or sent: crop, flip and all that follows are those of the other.
    boxes: also deliver `NAME_boxes`, float32 [B,4], the view's (top, left, height, width) as shares
      of the whole image before any flip, and `NAME_flipped`, bool [B].
    maps: fields of kind map that are cropped and flipped with the view, delivered as `NAME_MAP`
      [B,height,width]; of a map the pixel nearest to a result's centre is taken.
    transforms: functions (rng, picture) -> picture on the host, behind the crop; see
      `mim_jax.data.picture.Picture`. They must be picklable and comparable: functions of a module,
      or frozen dataclasses.
    """

    crop: Crop
    image_size: tuple[int, int]
    flip: float = 0.0
    colors: Colors = Colors()
    of: str = 'image'
    like: str | None = None
    boxes: bool = False
    maps: tuple[str, ...] = ()
    transforms: tuple[Callable, ...] = ()
