"""What a method sees of an item: which part of which field, at which size, in which colours."""

import dataclasses
from collections.abc import Callable

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
    scale: tuple[float, ...] = (0.2, 1.0)  # share of the image's area, smallest and largest
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)  # width / height, smallest and largest
    resize: float = 1.0  # 256 / 224: "resize to 256, crop 224"
    pad: int = 0
    factor: tuple[float, ...] = (0.5, 2.0)
    longest: float = 4.0
    max_share: float = 0.75
    share: float = 1.0
    interpolation: str = 'bicubic'  # 'linear': without antialiasing, as OpenCV's

    def __post_init__(self):
        if self.mode not in CROPS:
            raise ValueError(f'mode is {self.mode!r}, must be one of {", ".join(CROPS)}')
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f'interpolation is {self.interpolation!r}, '
                f'must be one of {", ".join(INTERPOLATIONS)}'
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f'scale is {self.scale}, must be (low, high) with 0 < low <= high <= 1'
            )
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio is {self.ratio}, must be (low, high) with 0 < low <= high')
        if self.resize < 1:
            raise ValueError(f'resize is {self.resize}, must be at least 1')
        if len(self.factor) != 2 or not 0 < self.factor[0] <= self.factor[1]:
            raise ValueError(f'factor is {self.factor}, must be (low, high) with 0 < low <= high')
        if self.longest < 1:
            raise ValueError(f'longest is {self.longest}, must be at least 1')
        if not 0 < self.max_share <= 1:
            raise ValueError(f'max_share is {self.max_share}, must be in (0, 1]; 1: any share')
        if self.pad < 0:
            raise ValueError(f'pad is {self.pad}, must be at least 0 pixels')
        if not 0 < self.share <= 1:
            raise ValueError(f'share is {self.share}, must be in (0, 1]')


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

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0
    grey: float = 0.0
    solarize: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, ...] = (0.1, 2.0)
    one_of: bool = False

    def __post_init__(self):
        for name in ('brightness', 'contrast', 'saturation'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} is {getattr(self, name)}, must be at least 0')
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f'hue is {self.hue}, must be in [0, 0.5] turns of the colour circle')
        if not 0 <= self.probability <= 1:
            raise ValueError(f'probability is {self.probability}, must be in [0, 1]')
        rest = self.grey, self.solarize, self.blur
        if min(rest) < 0 or (max(rest) > 1 and not self.one_of):
            raise ValueError(
                f'grey, solarize and blur are {rest}, must be probabilities (with one_of=true: '
                f'weights of at least 0)'
            )
        if self.one_of and not sum(rest):
            raise ValueError('one_of draws among grey, solarize and blur, all of which are 0')
        if len(self.blur_sigma) != 2 or not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(
                f'blur_sigma is {self.blur_sigma}, must be (low, high) in pixels with 0 < low <= '
                f'high'
            )


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
