"""Weights in files: our own naming (`native`), import from other projects, export to them."""
