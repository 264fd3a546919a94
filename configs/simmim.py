"""SimMIM: ViT-B/16 on ImageNet-1K for 800 epochs, or smaller.

Paper: Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022, arXiv
2111.09886.

    python -m mim_jax.main --config=configs/simmim.py
    python -m mim_jax.main --config=configs/simmim.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/simmim.py:embedded

Data: `_data.py`. The released README gives the batch of 2048 for Swin-B; ViT-B's is not
stated, and this config takes the same. Published result: 83.8 top-1 after fine-tuning on
ImageNet-1K. This config has not been run to the end at the large size by this project; its cost has
not been measured. The smaller sizes are those of the DTM configs.
"""

import _data
from _scales import scaled

from mim_jax.experiment import default_config


def vitb():
    config = default_config('simmim')
    config.model.update(
        patch_size=(16, 16),
        width=768,
        depth=12,
        heads=12,
        mask_token=True,
        position='none',
        relative_position='shared',
        layer_scale=0.1,
        drop_path=0.1,
        initialization='beit',
        dtype='bfloat16',
        remat='full',
    )
    config.objective.masking.ratio = 0.6
    _data.imagenet(config)
    config.data.batch_size = 2048
    config.data.crop.scale = (0.67, 1.0)
    config.optimizer.update(
        learning_rate=1e-4,
        scaling='linear',
        reference_batch=512,
        schedule='multistep',
        decay_percent=(87.5,),  # epoch 700 of 800
        decay_factor=0.1,
        warmup_epochs=10.0,
        warmup_learning_rate=5e-7,
        scale_ends=True,
        beta2=0.999,
        weight_decay=0.05,
        clip_norm=5.0,
    )
    config.train.total_epochs = 800.0
    config.checkpoint.update(every_epochs=1.0, keep=2, milestone_epochs=100.0)
    config.eval.every_epochs = 50.0
    config.log.pictures_every_epochs = 10.0
    return config


def small(scale):
    config, _ = scaled('simmim', scale)
    if scale == 'cifar10':
        config.model.update(relative_position='shared', qkv_bias='all')
    return config


def get_config(scale='vitb'):
    return vitb() if scale == 'vitb' else small(scale)
