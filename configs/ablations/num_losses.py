"""The number of schedules drawn per step, L; the loss is the mean over them.

    python -m mim_jax.sweep --table=configs/ablations/num_losses.py

runs it on the embedded scenes; other bases as in main.py.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'L = 1': {'objective.morphing.num_draws': '1'},
    'L = 2': {'objective.morphing.num_draws': '2'},
    'L = 3': {'objective.morphing.num_draws': '3'},
    'L = 4': {'objective.morphing.num_draws': '4'},
}
