"""The main comparison: token-wise targets, morphing by one schedule, morphing by drawn schedules.

    python -m mim_jax.sweep --table=configs/ablations/main.py

runs it on the embedded scenes. At the paper's scale:

    python -m mim_jax.sweep --table=configs/ablations/main.py --base=configs/dtm_vitb.py \\
        --dry_run

The rows cost the same but for the morphing itself: equal data, steps, networks. The one schedule
joins half of the tokens in one step.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'token-wise': {'objective.morphing.schedule': 'none'},
    'one schedule': {'objective.morphing.schedule': 'constant'},
    'DTM': {'objective.morphing.schedule': 'random'},
}
