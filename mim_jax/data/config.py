"""The config section `data`: where images come from and which view of them is trained on."""

import dataclasses

SOURCES = ('embedded', 'folder', 'tfds')
CROPS = ('random', 'resize', 'none')
INTERPOLATIONS = ('bicubic', 'bilinear')


@dataclasses.dataclass(frozen=True)
class Crop:
    """The part of an image that one training view shows.

    `mode` is 'random' (a random resized crop), 'resize' (the whole image, brought to the size,
    aspect ratio not kept) or 'none' (images must already have the size; the fastest way for
    32x32 sets). The other fields are read by 'random' and 'resize' alone.
    """

    mode: str = 'random'
    scale: tuple[float, ...] = (0.2, 1.0)  # share of the image's area, smallest and largest
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)  # width / height, smallest and largest
    interpolation: str = 'bicubic'

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


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Size of the embedded set; the scenes themselves have `data.image_size`."""

    num_train: int = 8192
    num_test: int = 2048

    def __post_init__(self):
        if self.num_train < 1 or self.num_test < 1:
            raise ValueError('num_train and num_test must be at least 1')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything about the data of a run.

    Fields:
      source: 'embedded' (scenes of handwritten digits, no download), 'folder' or 'tfds'.
      path: the image folder, or the data directory of TensorFlow Datasets (None: its default).
      dataset: name of the TFDS dataset, as 'imagenet2012'; other sources ignore it.
      split, eval_split: names of the training and the evaluation part; eval_split None: the run
        has no evaluation data.
      image_size: (height, width) in pixels of what the model sees.
      channels: 3 (colour) or 1 (grey).
      batch_size: images per step over all processes.
      mean, std: one number per channel, for images in [0, 1].
      crop, eval_crop: the training view, and for evaluation the share of each side of the
        largest centred box of the model's aspect ratio that is kept (0.875 is the usual
        256-to-224 centre crop). None: 0.875 where training crops at random, else all of it.
      flip: probability of a horizontal flip (on the device).
      color_jitter: (brightness, contrast, saturation), factors drawn from [1 - x, 1 + x]
        (on the device).
      masks: also deliver each image's per-pixel mask, where the source has one.
      shuffle: a new order in every epoch; False keeps the source's order.
      workers: decoding processes; 0 decodes in threads of the training process.
      threads: decoding threads per process.
      prefetch: batches that each process keeps ready.
      max_corrupt_share: the run stops when more than this share of the images cannot be read.
    """

    source: str = 'embedded'
    path: str | None = None
    dataset: str | None = None
    split: str = 'train'
    eval_split: str | None = 'test'
    image_size: tuple[int, ...] = (48, 48)
    channels: int = 3
    batch_size: int = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: Crop = dataclasses.field(default_factory=Crop)
    eval_crop: float | None = None
    flip: float = 0.0
    color_jitter: tuple[float, ...] = (0.0, 0.0, 0.0)
    masks: bool = False
    shuffle: bool = True
    workers: int = 0
    threads: int = 2
    prefetch: int = 2
    max_corrupt_share: float = 0.1
    embedded: Embedded = dataclasses.field(default_factory=Embedded)

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f'source is {self.source!r}, must be one of {", ".join(SOURCES)}')
        if self.source == 'folder' and not self.path:
            raise ValueError("source 'folder' needs path, the folder of images")
        if self.source == 'tfds' and not self.dataset:
            raise ValueError("source 'tfds' needs dataset, as dataset='imagenet2012'")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f'image_size is {self.image_size}, must be (height, width) in pixels')
        if self.source == 'embedded' and not all(32 <= side <= 64 for side in self.image_size):
            raise ValueError(
                f'image_size is {self.image_size}, the embedded scenes have 32 to 64 pixels a side'
            )
        if self.channels not in (1, 3):
            raise ValueError(f'channels is {self.channels}, must be 3 (colour) or 1 (grey)')
        for name in ('mean', 'std'):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f'{name} has {len(getattr(self, name))} numbers, channels is {self.channels}: '
                    f'give one per channel'
                )
        if min(self.std) <= 0:
            raise ValueError(f'std is {self.std}, every number must be above 0')
        if self.batch_size < 1:
            raise ValueError(f'batch_size is {self.batch_size}, must be at least 1')
        if not 0 <= self.flip <= 1:
            raise ValueError(f'flip is {self.flip}, must be a probability')
        if len(self.color_jitter) != 3 or min(self.color_jitter) < 0:
            raise ValueError(
                f'color_jitter is {self.color_jitter}, must be three numbers of at least 0: '
                f'brightness, contrast, saturation'
            )
        if self.eval_crop is not None and not 0 < self.eval_crop <= 1:
            raise ValueError(f'eval_crop is {self.eval_crop}, must be a share in (0, 1]')
        if not 0 <= self.max_corrupt_share <= 1:
            raise ValueError(f'max_corrupt_share is {self.max_corrupt_share}, must be in [0, 1]')
        if min(self.workers, self.threads, self.prefetch) < 0:
            raise ValueError('workers, threads and prefetch must be at least 0')
