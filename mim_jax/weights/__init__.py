"""Weights in files: our own naming as safetensors (`native`)."""
