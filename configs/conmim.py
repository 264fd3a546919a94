"""ConMIM, ViT-B/16, ImageNet-1K, 800 epochs.

Paper: Yi et al., "Masked Image Modeling with Denoising Contrast", ICLR 2023, arXiv 2205.09616.

    python -m mim_jax.main --config=configs/conmim.py
    python -m mim_jax.main --config=configs/conmim.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/conmim.py:embedded

Blocks instead of a coarse grid, the default of the released code:
`--config.objective.masking.name=block`. With morphing of the average's projections:
`--config.objective.morphing.schedule=random`.

Data: `_data.py`. Published result: 83.7 top-1 after fine-tuning on ImageNet-1K (ViT-S, 300 epochs:
82.0; ViT-L 85.2). This config has not been run to the end at the large size by this project; its
cost has not been measured.

The released code (TencentARC/ConMIM) gives the command of ViT-L: coarse grid at 75 %, batch 2048
(64 on each of 32 GPUs), rate 7.5e-4 as it is, 10 epochs of warm-up, clipping at 1. That ViT-B's is
the same is our guess; its layer scale, 0.1, is the default of that code ("0.1 for base"), as are
the second beta of 0.98, drop path 0, the last rate of 1e-5, temperature 0.1, the average's decay,
and crops of 8 % and more. Weight decay and first tokens are those of BEiT's code, on which it is
built. Ours: bfloat16 for float16. `:cifar10` is dtm_cifar10.py's size with this objective,
clipping, drop path and colours, `:embedded` has network and optimiser of quickstart.py; the widths
of the projector are ours at both, and at the latter the average's decay.
"""

from _released import as_released
from _scales import scaled

HEADS = {
    'vitb': dict(hidden=4096, projection=256),
    'cifar10': dict(hidden=512, projection=128),
    'embedded': dict(hidden=256, projection=64),
}


def get_config(scale='vitb'):
    config, _ = scaled('conmim', scale)
    config.objective.update(HEADS[scale])
    # The student's view; the average's colours have their own section in `objective`.
    config.data.colors.update(brightness=0.0, contrast=0.0, saturation=0.0)
    config.train.ema.update(decay=0.996, end_decay=1.0)
    if scale == 'embedded':
        config.train.ema.decay = 0.99
        return config
    config.model.update(relative_position='shared', layer_scale=0.1, drop_path=0.0)
    config.optimizer.clip_norm = 1.0
    as_released(config)
    if scale == 'vitb':
        config.data.crop.scale = (0.08, 1.0)
        config.optimizer.update(learning_rate=7.5e-4, scaling='none')
        config.train.update(total_epochs=800.0, whole_batches=True)
    return config
