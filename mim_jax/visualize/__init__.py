"""Pictures: masks, reconstructions, morphing groups and features, as uint8 sheets."""

from mim_jax.visualize.draw import draw, write
from mim_jax.visualize.pictures import render

__all__ = ['draw', 'render', 'write']
