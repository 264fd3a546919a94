"""How consistent a teacher's tokens are, as they are and averaged in groups.

The pilot study of Dynamic Token Morphing (arXiv 2401.00254): `python -m mim_jax.pilot_study`.
"""
