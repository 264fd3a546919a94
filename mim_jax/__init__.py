"""Masked image modelling in JAX/Flax, for TPU and GPU."""
