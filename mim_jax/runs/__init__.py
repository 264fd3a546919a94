"""Runs beside each other, by what their work directories say; nothing is built, nor is JAX."""
