"""Supervised classification from scratch: ViT-B/16 on ImageNet-1K for 300 epochs, or smaller.

    python -m mim_jax.main --config=configs/classification.py
    python -m mim_jax.main --config=configs/classification.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/classification.py:embedded

The large size has optimiser, drop path, label smoothing and average of MAE's supervised baseline
(He et al., arXiv 2111.06377, appendix A.2, published: 82.3 top-1), but neither its mixup and cutmix
nor RandAugment, so that less is to be expected; it has not been run by this project. The smaller
ones are the teachers of the DTM configs of their size: cifar10_teacher.py, quickstart_teacher.py.
"""

import _data
from _scales import at
from cifar10_teacher import get_config as cifar10
from quickstart_teacher import get_config as embedded

from mim_jax.experiment import default_config


def vitb():
    config = default_config('classification')
    config.model.update(
        patch_size=(16, 16),
        width=768,
        depth=12,
        heads=12,
        drop_path=0.2,
        dtype='bfloat16',
        remat='full',
    )
    config.objective.label_smoothing = 0.1
    _data.imagenet(config)
    config.data.batch_size = 4096
    config.data.crop.scale = (0.08, 1.0)
    config.optimizer.update(
        learning_rate=1e-4,
        scaling='linear',
        reference_batch=256,
        warmup_epochs=20.0,
        beta2=0.95,
        weight_decay=0.3,
    )
    config.train.total_epochs = 300.0
    config.train.ema.decay = 0.9999
    config.checkpoint.update(every_epochs=1.0, keep=2, milestone_epochs=50.0)
    config.eval.every_epochs = 25.0
    return config


def get_config(scale='vitb'):
    return at({'vitb': vitb, 'cifar10': cifar10, 'embedded': embedded}, scale)()
