"""Dynamic Token Morphing by its size: dtm_vitb.py, dtm_cifar10.py, quickstart.py.

python -m mim_jax.main --config=configs/dtm.py
python -m mim_jax.main --config=configs/dtm.py:cifar10 --config.data.source.path=DIR
python -m mim_jax.main --config=configs/dtm.py:embedded
"""

from _scales import SCALES, at


def get_config(scale='vitb'):
    return at(SCALES, scale)()
