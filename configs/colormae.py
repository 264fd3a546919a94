"""ColorMAE with green noise, ViT-B/16, ImageNet-1K, 800 epochs.

Paper: Hinojosa, Liu, Ghanem, "ColorMAE: Exploring Data-Independent Masking Strategies in Masked
AutoEncoders", ECCV 2024, arXiv 2407.13036.

    python -m mim_jax.main --config=configs/colormae.py
    python -m mim_jax.main --config=configs/colormae.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/colormae.py:embedded

Other colours: `--config.objective.masking.color=red` (blue, purple; white is MAE). Several, one
after the other:

    "--config.objective.later=('blue', 'red')" "--config.objective.later_percent=(67.0, 83.0)"


Everything but the mask is mae.py's, as in the released recipe. Published results after 300, 800 and
1600 epochs: 83.01, 83.61 and 83.77 top-1 after fine-tuning on ImageNet-1K, with random masks 82.82,
83.17 and 83.43. This config has not been run to the end by this project; its cost has not been
measured.

Ours: the authors publish their noise as files and neither its making nor its filters. Here every
image has fresh noise of its own, and the deviations of the filters, 0.5 and 2 patches, are those of
another project that makes green noise on the grid of patches; that red and blue use the wider of
the two is decided here.
"""

from _scales import borrowed
from mae import get_config as mae


def get_config(scale='vitb'):
    base = mae(scale)
    config = borrowed('colormae', base)
    config.objective.decoder = base.objective.decoder
    config.objective.masking.ratio = 0.75
    return config
