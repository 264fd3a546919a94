"""The config section `data`: where images come from and how they are seen by default."""

import dataclasses
from typing import Any, Literal

from mim_jax.config import choice
from mim_jax.data.randaugment import RandAugment, no_maps
from mim_jax.data.sources import SOURCES
from mim_jax.data.view import Colors, Crop, View
from mim_jax.errors import UserError
from mim_jax.ranges import (
    AnyNumber,
    Batch,
    Count,
    Positive,
    PositiveShare,
    Share,
    Side,
    Workers,
    WorkersOrAll,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything about the data of a run.

    Fields:
      source: one of `sources.SOURCES` by its `name`, with the fields of its own section.
      split, eval_split: names of the training and the evaluation part; eval_split None: the run
        has no evaluation data.
      image_size: (height, width) in pixels of what the model sees; one number: square.
      channels: 3 (colour) or 1 (grey).
      batch_size: images per step over all processes.
      mean, std: for images in [0, 1], one number per channel, or one for all.
      crop, flip, colors: of the views, where the objective asks for nothing else; see `View`.
      eval_crop: the share of each side of the largest centred box of the model's aspect ratio that
        is kept for evaluation (0.875 is the usual 256-to-224 centre crop). None: 0.875 where
        training crops at random, 1 / crop.resize where it crops 'simple', else all of it.
      randaugment: strong changes on the host, behind the crop of every view; off by default.
      shuffle: a new order in every epoch; False keeps the source's order.
      shuffle_block: so many neighbours of the source are read one after the other, for data on
        network storage; see `mim_jax.data.order.BlockOrder`. None: every item by itself.
      workers: decoding processes; 0 decodes in threads of the training process. -1: one for each
        core that this process has for itself (of the host's, divided among its processes), but one.
      threads: decoding threads per process.
      prefetch: batches that each process keeps ready.
      max_corrupt_share: the run stops when more than this share of the images cannot be read.
    """

    source: Any = choice(SOURCES, 'embedded')
    split: str = 'train'
    eval_split: str | None = 'test'
    image_size: tuple[Side, ...] = (48, 48)
    channels: Literal[1, 3] = 3
    batch_size: Batch = 128
    mean: tuple[AnyNumber, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)
    crop: Crop = dataclasses.field(default_factory=Crop)
    eval_crop: PositiveShare | None = None
    flip: Share = 0.0
    colors: Colors = dataclasses.field(default_factory=Colors)
    randaugment: RandAugment = dataclasses.field(default_factory=RandAugment)
    shuffle: bool = True
    shuffle_block: Count | None = None
    workers: WorkersOrAll = 0
    threads: Workers = 2
    prefetch: Workers = 2
    max_corrupt_share: Share = 0.1

    def __post_init__(self):
        for name, count in (('image_size', 2), ('mean', self.channels), ('std', self.channels)):
            if len(getattr(self, name)) == 1:
                object.__setattr__(self, name, tuple(getattr(self, name)) * count)
        if len(self.image_size) != 2:
            raise ValueError(f'image_size is {self.image_size}, must be (height, width) in pixels')
        if self.shuffle_block is not None and not self.shuffle:
            raise ValueError('shuffle_block is a way to shuffle: set shuffle=true or leave it out')
        for name in ('mean', 'std'):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f'{name} has {len(getattr(self, name))} numbers, channels is {self.channels}: '
                    f'give one per channel'
                )

    def view(self, **changes: Any) -> View:
        """A view of this section's crop, size, flip and colours, but for the fields named; with
        RandAugment, if the section has it, before the view's own transforms.

        Raises:
          UserError: RandAugment, and maps or boxes that would have to follow.
        """
        view = View(
            crop=self.crop, image_size=tuple(self.image_size), flip=self.flip, colors=self.colors
        )
        view = dataclasses.replace(view, **changes)
        if not self.randaugment.num_ops or view.like is not None:
            return view
        if view.maps or view.boxes:
            raise UserError(no_maps((*view.maps, *(['the boxes'] if view.boxes else []))))
        fill = tuple(min(255, round(255 * level)) for level in self.mean)
        augment = dataclasses.replace(self.randaugment, fill=fill)
        return dataclasses.replace(view, transforms=(augment, *view.transforms))
