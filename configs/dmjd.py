"""DMJD on ViT-B/16, ImageNet-1K, 400 epochs, in each of which every image is seen twice.

Paper: Ma et al., "Disjoint Masking with Joint Distillation for Efficient Masked Image Modeling",
arXiv 2301.00230.

    python -m mim_jax.main --config=configs/dmjd.py
    python -m mim_jax.main --config=configs/dmjd.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/dmjd.py:embedded

Single patches instead of blocks: `--config.objective.masking.cell=1,1`.

Data: `_data.py`. Published results after fine-tuning on ImageNet-1K: 84.1 for ViT-B (MaskFeat with
DMJD; linear probe 71.9), 85.2 for ConViT-B. This config has not been run to the end by this
project; its cost has not been measured.

The released code (mx-mark/DMJD) has ConViT alone, with convolutional stages before its blocks.
Views, masks, target, decoder, head, losses and optimiser here are that recipe's; the network is
MAE's ViT without class token, and that they go together is ours. Its rule for the rate counts
predicted patches: 6e-4 / 0.6 per 256 images, 2e-3 for 512. The small sizes are those of mae.py.
"""

from _scales import borrowed
from mae import get_config as mae


def get_config(scale='vitb'):
    base = mae(scale)
    config = borrowed('dmjd', base)
    config.objective.decoder = base.objective.decoder
    config.model.class_token = False
    if scale == 'vitb':
        config.data.batch_size = 512
        config.data.crop.scale = (0.5, 1.0)
        config.optimizer.update(learning_rate=6e-4 / 0.6, warmup_epochs=20.0)
        config.train.total_epochs = 400.0
    return config
