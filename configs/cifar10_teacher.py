"""A supervised ViT on CIFAR-10, as a frozen teacher for dtm_cifar10.py.

    python -m mim_jax.main --config=configs/cifar10_teacher.py --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/dtm_cifar10.py --config.data.source.path=DIR \\
        --config.objective.target.weights=runs/cifar10_teacher \\
        --config.objective.target.model.depth=6

DIR as in mae.py:cifar10. It plays the part that CLIP plays at full scale: a teacher that has seen
other supervision than the student.
"""

import _data

from mim_jax.experiment import default_config


def get_config():
    config = default_config('classification')
    _data.cifar10(config)
    config.data.batch_size = 128
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    config.model.update(patch_size=(4, 4), width=192, depth=6, heads=3, drop_path=0.05)
    config.objective.update(head_scale=1.0, label_smoothing=0.1)
    config.optimizer.update(
        learning_rate=1e-3,
        scaling='none',
        warmup_percent=5.0,
        beta2=0.99,
        weight_decay=0.05,
        clip_norm=1.0,
    )
    config.train.total_epochs = 20.0
    config.checkpoint.update(every_epochs=1.0, keep=2)
    config.eval.every_epochs = 5.0
    config.eval.knn.max_train = 20000
    return config
