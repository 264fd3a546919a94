"""What is predicted, each with morphing.

    python -m mim_jax.sweep --table=configs/ablations/target.py

runs it on the embedded scenes; other bases as in main.py. The networks of `_teachers.py` are
compared at the paper's scale by a table of their own, teacher.py.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'frozen teacher': {},
    'frozen teacher, one block earlier': {'objective.target.layer': '3'},
    'average of the student': {'objective.target.name': 'ema', 'train.ema.decay': '0.99'},
    'HOG': {
        'objective.target.name': 'hog',
        'objective.target.cells': '1,1',
        'objective.distance.name': 'l2',
    },
    'pixels': {
        'objective.target.name': 'pixels',
        'objective.target.normalize': 'true',
        'objective.distance.name': 'l2',
    },
}
