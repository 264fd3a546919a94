"""The distance between morphed tokens.

    python -m mim_jax.sweep --table=configs/ablations/distance.py

runs it on the embedded scenes; other bases as in main.py.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'cosine': {'objective.distance.name': 'cosine'},
    'L1': {'objective.distance.name': 'l1'},
    'L2': {'objective.distance.name': 'l2'},
    'smooth L1': {'objective.distance.name': 'smooth_l1'},
}
