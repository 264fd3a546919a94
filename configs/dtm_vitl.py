"""Dynamic Token Morphing, ViT-L/16: as dtm_vitb.py with the large encoder.

    python -m mim_jax.main --config=configs/dtm_vitl.py

Published result: 86.7 top-1 after fine-tuning on ImageNet-1K (300 epochs). This config has not
been run to the end by this project; its cost has not been measured.
"""

from dtm_vitb import get_config as vit_base


def get_config(teacher='clip_vitb16'):
    config = vit_base(teacher)
    config.model.update(width=1024, depth=24, heads=16, layer_scale=1e-5)
    return config
