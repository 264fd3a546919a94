"""DMT-JEPA, ViT-B/16, ImageNet-1K, 600 epochs.

Paper: Mo and Yun, "DMT-JEPA: Discriminative Masked Targets for Joint-Embedding Predictive
Architecture", arXiv 2405.17995.

    python -m mim_jax.main --config=configs/dmtjepa.py
    python -m mim_jax.main --config=configs/dmtjepa.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/dmtjepa.py:embedded

With morphing of the predicted tokens: `--config.objective.morphing.schedule=random`.

All but the head is ijepa.py's, whose large size has the values of this method's released recipe
(its batch is 256 per GPU, of a number of GPUs that is not stated; 2048 is I-JEPA's). There the
mean by which a patch asks its neighbours is, by a slip, that of another image of the batch; here it
is that of its own. No result of ViT-B is stated there. This config has not been run to the end by
this project; its cost has not been measured.
"""

from ijepa import get_config as ijepa


def get_config(scale='vitb'):
    config = ijepa(scale, 'dmtjepa')
    config.train.ema.parts = ('encoder', 'aggregation')
    return config
