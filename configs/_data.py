"""Data sets that several configs share; each function fills the section `data`."""

from mim_jax.config import option
from mim_jax.data import SOURCES


def imagenet(config):
    """ImageNet-1K at 224 pixels, prepared by `tfds build imagenet2012 --file_format=array_record`;
    or class sub-folders with `--config.data.source.name=folder --config.data.source.path=DIR`.
    """
    config.data.source = option(SOURCES, 'tfds', dataset='imagenet2012')
    config.data.update(eval_split='validation', image_size=(224, 224), flip=0.5, workers=-1)
    config.data.crop.update(scale=(0.2, 1.0), interpolation='bicubic')


def cifar10(config):
    """CIFAR-10 from train/CLASS/*.jpg and test/CLASS/*.jpg below `--config.data.source.path`; or,
    prepared by TFDS, `--config.data.source.name=tfds --config.data.source.dataset=cifar10`.
    """
    config.data.source = option(SOURCES, 'folder', path='cifar10')
    config.data.update(
        image_size=(32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=0.5,
    )
    config.data.crop.update(scale=(0.2, 1.0), interpolation='bicubic')
