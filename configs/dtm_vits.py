"""Dynamic Token Morphing, ViT-S/16: as dtm_vitb.py with the small encoder.

    python -m mim_jax.main --config=configs/dtm_vits.py

Every other value, borrowed and decided ones too, is that of dtm_vitb.py: DTM's own settings for
this size are not public. Layer scale 0.1 is its code's for S and B.

Published result: 83.2 top-1 after fine-tuning on ImageNet-1K (300 epochs). This config has not
been run to the end by this project; its cost has not been measured.
"""

from dtm_vitb import get_config as vit_base


def get_config(teacher='clip_vitb16'):
    config = vit_base(teacher)
    config.model.update(width=384, heads=6)
    return config
