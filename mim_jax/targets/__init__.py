"""What is predicted: pixels, oriented gradients, features of a frozen or averaged network."""

from mim_jax.targets.pixels import Pixels, denormalize_patches, normalize_patches

__all__ = ['Pixels', 'denormalize_patches', 'normalize_patches']
