"""Learning with Unmasked Tokens (LUT), ViT-B/16, ImageNet-1K, 1600 epochs.

Paper: Kim, Chun, Heo, Han, "Learning with Unmasked Tokens Drives Stronger Vision Learners",
ECCV 2024, arXiv 2310.13593.

    python -m mim_jax.main --config=configs/lut.py
    python -m mim_jax.main --config=configs/lut.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/lut.py:embedded

Data: as in dtm_vitb.py. Published result: 84.2 top-1 after fine-tuning on ImageNet-1K (ViT-S 82.0,
ViT-L 86.0). This config has not been run to the end by this project; its cost has not been
measured.

The large size is the released recipe. At the small ones model, length and batch are ours (those of
the DTM config of the same size), and so are the widths of decoder and heads; views, mask, losses
and weights are the paper's. `cifar10` also has the paper's optimiser with its rule for the learning
rate, `embedded` the quick start's optimiser and an average that starts to move faster.
"""

from _scales import PLAIN, scaled

SIZES = {
    'vitb': dict(
        hidden=4096, decoder=dict(width=512, depth=8, heads=16, dtype='bfloat16', remat='full')
    ),
    'cifar10': dict(hidden=512, decoder=dict(width=128, depth=4, heads=4)),
    'embedded': dict(hidden=256, decoder=dict(width=48, depth=2, heads=3, scan=False)),
}


def get_config(scale='vitb'):
    config, _ = scaled('lut', scale)
    config.model.update(PLAIN)
    config.objective.update(SIZES[scale])
    # The first view; the second has its own section in `objective`.
    config.data.crop.update(mode='simple', resize=1.0, pad=4)
    config.data.colors.update(brightness=0.0, contrast=0.0, saturation=0.0)
    config.train.ema.update(decay=0.996, end_decay=1.0, parts=('encoder', 'projector'))
    if scale == 'embedded':
        config.train.ema.decay = 0.99
        return config
    config.optimizer.update(
        learning_rate=1.5e-4,
        scaling='sqrt',
        reference_batch=16,  # 1.5e-4 sqrt(batch) / 4
        end_learning_rate=0.0,
        beta2=0.95,
        weight_decay=0.05,
        clip_norm=None,
    )
    if scale == 'vitb':
        config.data.batch_size = 4096
        config.optimizer.warmup_epochs = 40.0
        config.train.total_epochs = 1600.0
        config.checkpoint.milestone_epochs = 100.0
        config.eval.every_epochs = 50.0
    return config
