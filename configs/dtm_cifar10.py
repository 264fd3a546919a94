"""Dynamic Token Morphing on CIFAR-10 from a teacher of ours: 32x32 images, patches of 4, a small
ViT.

    python -m mim_jax.main --config=configs/mae.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/dtm_cifar10.py --config.data.source.path=DIR

The teacher is the work directory of the first command (`runs/mae_cifar10`); with
`--config.objective.target.weights=RUN` any other run with the same encoder is, a supervised one
for example.

Of the recipe of dtm_vitb.py: model but for its size, colours, optimiser, initialisation, what is
decayed. Decided here: sizes, the mask of 24 of 64 patches in blocks of at least 4, 100 epochs of
which 5 warm up, epochs counted in examples, the teacher's normalisation (the student's, which it
was trained with).
"""

import _data
from _released import as_released

from mim_jax.experiment import default_config


def get_config():
    config = default_config('dtm')
    _data.cifar10(config)
    config.data.batch_size = 512
    config.model.update(
        patch_size=(4, 4),
        width=192,
        depth=12,
        heads=3,
        mask_token=True,
        position='none',
        relative_position='both',
        qkv_bias='qv',
        layer_scale=0.1,
        drop_path=0.1,
        initialization='beit',
    )
    config.objective.masking.update(num_masked=24, min_block=4)
    target = config.objective.target
    target.weights = 'runs/mae_cifar10'
    target.model.update(patch_size=(4, 4), width=192, depth=12, heads=3)
    target.mean, target.std = config.data.mean, config.data.std
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    config.optimizer.update(
        learning_rate=1.5e-3,
        scaling='sqrt',
        reference_batch=2048,
        end_learning_rate=1e-5,
        warmup_epochs=5.0,
        beta2=0.98,
        weight_decay=0.05,
        clip_norm=3.0,
    )
    as_released(config)
    config.train.total_epochs = 100.0
    config.checkpoint.update(every_epochs=5.0, keep=2)
    config.eval.every_epochs = 10.0
    config.eval.knn.max_train = 20000
    config.log.pictures_every_epochs = 20.0
    return config
