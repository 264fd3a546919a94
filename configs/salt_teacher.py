"""SALT's first stage, ViT-B/16, ImageNet-1K, 80,000 steps: hidden pixels, V-JEPA's masks.

    python -m mim_jax.main --config=configs/salt_teacher.py
    python -m mim_jax.main --config=configs/salt_teacher.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/salt_teacher.py:embedded

The encoder that it trains teaches salt.py, whose docstring says what is the paper's and what is
ours. Mean square of pixels normalised patch by patch, by a predictor of the second stage's shape.
Published, by a frozen attentive classifier on ImageNet-1K: 70.3 top-1 (trained on videos).
"""

from salt import recipe

from mim_jax.config import option
from mim_jax.targets import TARGETS


def get_config(scale='vitb'):
    config = recipe(scale)
    with config.objective.unlocked():
        config.objective.target = option(TARGETS, 'pixels', normalize=True)
    config.objective.standardize_target = False
    config.objective.distance.name = 'l2'
    config.train.total_steps = {'vitb': 80_000, 'cifar10': 3_000, 'embedded': 240}[scale]
    return config
