"""CAE v2, ViT-B/16, ImageNet-1K, CLIP ViT-B/16 teacher, 300 epochs.

Paper: Zhang et al., "CAE v2: Context Autoencoder with CLIP Latent Alignment", TMLR 2023.

    python -m mim_jax.main --config=configs/caev2.py
    python -m mim_jax.main --config=configs/caev2.py:vits
    python -m mim_jax.main --config=configs/caev2.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/caev2.py:embedded

With morphing: `--config.objective.morphing.schedule=random`. Data and teachers as in dtm_vitb.py,
dtm_cifar10.py and quickstart.py. The recipe is the released one (Atten4Vis/CAE, project/CAEv2);
smaller students are given easier tasks: ViT-B has 98 hidden patches and 4 blocks of regressor,
ViT-S 49 and 1. Its ViT-T (30 hidden) is not here, whose regressor has a width of its own. Not as
there: bfloat16 instead of float16, and a patch embedding that starts Xavier-uniform, as all other
layers do there too. This project knows no published figure of these recipes for certain. This
config has not been run to the end at the large sizes by this project; its cost has not been
measured. Ours at the small sizes: what cae.py says of its own.
"""

from _scales import scaled
from cae import DEPTHS, MASKS, encoder


def get_config(scale='vitb'):
    size = 'vitb' if scale == 'vits' else scale
    config, teacher = scaled('caev2', size)
    encoder(config, size)
    with config.objective.unlocked():
        config.objective.target = teacher
    config.objective.masking.update(MASKS[size])
    config.objective.regressor_depth = DEPTHS[size]
    if size == 'vitb':
        config.data.crop.scale = (0.4, 1.0)
        config.optimizer.scaling = 'none'
        config.train.whole_batches = True
    if scale == 'vits':
        config.model.width = 384  # 12 heads, as there
        config.objective.masking.num_masked = 49
        config.objective.regressor_depth = 1
    return config
