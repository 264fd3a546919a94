"""The schedule: which of the two numbers is drawn anew at every step.

    python -m mim_jax.sweep --table=configs/ablations/schedule.py

runs it on the embedded scenes; other bases as in main.py.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'token-wise': {'objective.morphing.schedule': 'none'},
    'constant, 1 step': {
        'objective.morphing.schedule': 'constant',
        'objective.morphing.num_steps': '1',
    },
    'constant, 7 steps': {
        'objective.morphing.schedule': 'constant',
        'objective.morphing.num_steps': '7',
    },
    'fixed number, random steps': {'objective.morphing.schedule': 'fixed_number'},
    'random number, 7 steps': {
        'objective.morphing.schedule': 'fixed_steps',
        'objective.morphing.num_steps': '7',
    },
    'random number, random steps': {'objective.morphing.schedule': 'random'},
}
