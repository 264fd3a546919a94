"""Bootstrap Your Own Latent on tokens, morphed: two views, no teacher but the network's average.

    python -m mim_jax.main --config=configs/byol.py
    python -m mim_jax.main --config=configs/byol.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/byol.py:embedded

Without morphing: `--config.objective.morphing.schedule=none`.

DTM (arXiv 2401.00254), section on other frameworks, whose settings for this one are not public;
losses and heads are those of BYOL (Grill et al., NeurIPS 2020); the optimiser is that of the DTM
config of the same size, at the large one with MAE's learning rate. Published:
+0.4 points over the same without morphing. This config has not been run to the end at the large
size by this project; its cost has not been measured.
"""

from _scales import PLAIN, scaled

HEADS = {
    'vitb': dict(hidden=4096, projection=256),
    'cifar10': dict(hidden=512, projection=128),
    'embedded': dict(hidden=256, projection=64),
}


def get_config(scale='vitb'):
    config, _ = scaled('byol', scale)
    config.model.update(PLAIN)
    config.objective.update(HEADS[scale])
    config.objective.morphing.schedule = 'random'
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    config.train.ema.update(decay=0.996, end_decay=1.0)
    if scale == 'vitb':
        config.optimizer.update(learning_rate=1.5e-4, scaling='linear', reference_batch=256)
    if scale == 'embedded':
        config.train.ema.decay = 0.99
    return config
