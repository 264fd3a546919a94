"""Which network teaches, at the paper's scale.

    python -m mim_jax.sweep --table=configs/ablations/teacher.py --dry_run

prints the commands; each row needs its weights in `teachers/NAME` (see ../_teachers.py).
"""

BASE = 'configs/dtm_vitb.py'

ROWS = {
    'CLIP ViT-B/16': {'config': 'configs/dtm_vitb.py:clip_vitb16'},
    'CLIP ViT-L/14': {'config': 'configs/dtm_vitb.py:clip_vitl14'},
    'DINO ViT-B/16': {'config': 'configs/dtm_vitb.py:dino_vitb16'},
    'MAE ViT-B/16': {'config': 'configs/dtm_vitb.py:mae_vitb16'},
    'BEiT v2 ViT-B/16': {'config': 'configs/dtm_vitb.py:beitv2_vitb16'},
}
