"""Flax modules used as pure functions: one encoder for students and teachers, decoders, heads."""

from mim_jax.models.decoders import CrossDecoder, MAEDecoder
from mim_jax.models.heads import PooledClassifier, TokenHead
from mim_jax.models.patches import patch_grid, patchify, unpatchify
from mim_jax.models.pooling import AttentivePool
from mim_jax.models.vit import Encoded, ViT

__all__ = [
    'AttentivePool',
    'CrossDecoder',
    'Encoded',
    'MAEDecoder',
    'PooledClassifier',
    'TokenHead',
    'ViT',
    'patch_grid',
    'patchify',
    'unpatchify',
]
