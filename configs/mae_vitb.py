"""Masked Autoencoder, ViT-B/16, ImageNet-1K, 800 epochs, per-patch normalised pixels.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377.

    python -m mim_jax.main --config=configs/mae_vitb.py

Data: as in dtm_vitb.py. Published result: 83.6 top-1 after fine-tuning on ImageNet-1K (1600
epochs). This config has not been run to the end by this project; its cost has not been measured.
"""

from mim_jax.config import option
from mim_jax.data import SOURCES
from mim_jax.experiment import default_config


def get_config():
    config = default_config('mae')
    config.model.update(
        patch_size=(16, 16), width=768, depth=12, heads=12, dtype='bfloat16', remat='full'
    )
    config.objective.masking.ratio = 0.75
    config.objective.decoder.update(width=512, depth=8, heads=16, dtype='bfloat16', remat='full')
    config.data.source = option(SOURCES, 'tfds', dataset='imagenet2012')
    config.data.update(
        eval_split='validation',
        image_size=(224, 224),
        batch_size=4096,
        flip=0.5,
        workers=16,
    )
    config.data.crop.update(scale=(0.2, 1.0), interpolation='bicubic')
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
