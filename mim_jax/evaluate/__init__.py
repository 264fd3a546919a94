"""Evaluation of finished or running runs and of weights: `python -m mim_jax.evaluate`."""
