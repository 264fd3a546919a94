"""Noisy Image Modeling, ViT-B/16, ImageNet-1K, 800 epochs.

Paper: You et al., "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense",
NeurIPS 2023, arXiv 2302.01056.

    python -m mim_jax.main --config=configs/nim.py
    python -m mim_jax.main --config=configs/nim.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/nim.py:embedded

What it learns serves as a defence: de3.py. The released code's other noises:
`--config.objective.corruption.gamma=none` with `--config.objective.corruption.sigma=0,150`, drawn
uniformly, or `=75,75`, the same for all images; its option `nonorm`:
`--config.objective.target.normalize=false`.

Data, model, decoder, optimiser and length are those of mae.py, as in the released code
(youzunzhi/NIM-AdvDef). Its README has no figures. This config has not been run to the end by this
project; its cost has not been measured. The small sizes are ours.
"""

from _scales import borrowed
from mae import get_config as mae


def get_config(scale='vitb'):
    base = mae(scale)
    config = borrowed('nim', base)
    config.objective.decoder = base.objective.decoder
    return config
