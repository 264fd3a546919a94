"""Masked Autoencoder on CIFAR-10: 32x32 images, patches of 4, a small ViT.

    python -m mim_jax.main --config=configs/mae_cifar10.py --config.data.source.path=DIR

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg; or, with TFDS' prepared data,
`--config.data.source.name=tfds --config.data.source.dataset=cifar10`.
"""

from mim_jax.config import option
from mim_jax.data import SOURCES
from mim_jax.experiment import default_config


def get_config():
    config = default_config('mae')
    config.model.update(patch_size=(4, 4), width=192, depth=12, heads=3)
    config.objective.masking.ratio = 0.75
    config.objective.decoder.update(width=128, depth=4, heads=4)
    config.data.source = option(SOURCES, 'folder', path='cifar10')
    config.data.update(
        image_size=(32, 32),
        batch_size=512,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=0.5,
    )
    config.data.crop.update(scale=(0.2, 1.0), interpolation='bicubic')
    config.optimizer.update(
        learning_rate=1.5e-4, reference_batch=256, warmup_epochs=20.0, weight_decay=0.05
    )
    config.train.total_epochs = 400.0
    config.checkpoint.update(every_epochs=5.0, keep=2)
    config.eval.every_epochs = 20.0
    config.eval.knn.max_train = 20000
    config.log.pictures_every_epochs = 20.0
    return config
