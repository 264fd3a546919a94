"""Masked Autoencoder, pixels normalised per patch: ViT-B/16, ImageNet-1K, 800 epochs; or smaller.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377.

    python -m mim_jax.main --config=configs/mae.py
    python -m mim_jax.main --config=configs/mae.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/mae.py:embedded

Data: `_data.py`. Published result: 83.6 top-1 after fine-tuning on ImageNet-1K (1600 epochs). This
config has not been run to the end at the large size by this project; its cost has not been
measured. The smaller sizes are ours.
"""

import _data
from _scales import PLAIN, at, scaled

from mim_jax.experiment import default_config


def vitb():
    config = default_config('mae')
    config.model.update(
        patch_size=(16, 16), width=768, depth=12, heads=12, dtype='bfloat16', remat='full'
    )
    config.objective.masking.ratio = 0.75
    config.objective.decoder.update(width=512, depth=8, heads=16, dtype='bfloat16', remat='full')
    _data.imagenet(config)
    config.data.batch_size = 4096
    config.optimizer.update(
        learning_rate=1.5e-4,
        scaling='linear',
        reference_batch=256,
        warmup_epochs=40.0,
        beta2=0.95,
        weight_decay=0.05,
    )
    config.train.total_epochs = 800.0
    config.checkpoint.update(every_epochs=1.0, keep=2, milestone_epochs=100.0)
    config.eval.every_epochs = 50.0
    config.log.pictures_every_epochs = 10.0
    return config


def cifar10():
    config = default_config('mae')
    config.model.update(patch_size=(4, 4), width=192, depth=12, heads=3)
    config.objective.masking.ratio = 0.75
    config.objective.decoder.update(width=128, depth=4, heads=4)
    _data.cifar10(config)
    config.data.batch_size = 512
    config.optimizer.update(
        learning_rate=1.5e-4, reference_batch=256, warmup_epochs=20.0, weight_decay=0.05
    )
    config.train.total_epochs = 400.0
    config.checkpoint.update(every_epochs=5.0, keep=2)
    config.eval.every_epochs = 20.0
    config.eval.knn.max_train = 20000
    config.log.pictures_every_epochs = 20.0
    return config


def embedded():
    config, _ = scaled('mae', 'embedded')
    config.model.update(PLAIN)
    config.objective.masking.ratio = 0.75
    config.objective.decoder.update(width=48, depth=2, heads=3, scan=False)
    return config


def get_config(scale='vitb'):
    return at({'vitb': vitb, 'cifar10': cifar10, 'embedded': embedded}, scale)()
