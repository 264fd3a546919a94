"""What is predicted: pixels, oriented gradients, features of a frozen or averaged network."""

from mim_jax.targets.hog import HOG
from mim_jax.targets.network import Teacher, network_tokens, resample_tokens
from mim_jax.targets.pixels import Pixels, denormalize_patches, normalize_patches

__all__ = [
    'HOG',
    'Pixels',
    'Teacher',
    'denormalize_patches',
    'network_tokens',
    'normalize_patches',
    'resample_tokens',
]
