"""Masked image modelling in JAX/Flax: pre-train Vision Transformers by predicting targets at hidden patches."""
