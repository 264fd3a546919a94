"""What is predicted: pixels, oriented gradients, features of a frozen or averaged network."""

from mim_jax.targets.base import Target
from mim_jax.targets.dalle import DalleTokenizer
from mim_jax.targets.ema import EMA
from mim_jax.targets.features import network_tokens, resample_tokens
from mim_jax.targets.hog import HOG
from mim_jax.targets.layers import EMALayers
from mim_jax.targets.pixels import Pixels, denormalize_patches, normalize_patches
from mim_jax.targets.teacher import Teacher

TARGETS = {'pixels': Pixels, 'hog': HOG, 'teacher': Teacher, 'ema': EMA, 'ema_layers': EMALayers}

__all__ = [
    'EMA',
    'EMALayers',
    'HOG',
    'TARGETS',
    'DalleTokenizer',
    'Pixels',
    'Target',
    'Teacher',
    'denormalize_patches',
    'network_tokens',
    'normalize_patches',
    'resample_tokens',
]
