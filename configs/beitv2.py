"""BEiT v2, ViT-B/16, ImageNet-1K, 300 epochs, with morphing of its visual tokens.

    python -m mim_jax.main --config=configs/beitv2.py
    python -m mim_jax.main --config=configs/beitv2.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/beitv2.py:embedded

Without morphing, BEiT v2 itself: `--config.objective.morphing.schedule=none`.

The tokenizer is the work directory of a run of vqkd.py with the same argument
(`runs/vqkd_SCALE`), or `--config.objective.target.weights=WORKDIR`. Paper: Peng et al., "BEiT v2",
arXiv 2208.06366; DTM (arXiv 2401.00254), section on other frameworks. Published: 85.0 top-1 after
fine-tuning, +0.2 with morphing. This config has not been run to the end at the large size by this
project; its cost has not been measured.

The recipe is the released one (microsoft/unilm, beit2) for 300 epochs: batch 2048, rate 1.5e-3 as
it is, falling to 1e-5, 10 epochs of warm-up, second beta 0.98 and drop path 0 (0.999 and 0.1 for
1600), smallest crop 0.2, jitter 0.4, clipping at 3, weight decay 0.05 on the mask token and the
shared relative table too, layer scale 0.1, initial tokens cut, 625 steps an epoch, a branch of two
blocks from block 9. Decided here: how codes are morphed (`mim_jax/objectives/beitv2.py`), by the
default schedules of DTM; the tokenizer's input is normalised by 0.5, as in its own training.
`:cifar10` is dtm_cifar10.py's size with this drop path, relative table, decay and tokens;
`:embedded` has the plain network and the optimiser of quickstart.py.
"""

from _released import as_released
from _scales import scaled
from vqkd import get_config as tokenizer

MASKS = {
    'vitb': dict(num_masked=75, min_block=16),
    'cifar10': dict(num_masked=24, min_block=4),
    'embedded': dict(num_masked=12, min_block=4),
}


def get_config(scale='vitb'):
    config, _ = scaled('beitv2', scale)
    if scale != 'embedded':
        config.model.update(relative_position='shared', layer_scale=0.1, drop_path=0.0)
        as_released(config)
    frozen = tokenizer(scale)
    target = config.objective.target
    target.weights = f'runs/vqkd_{scale}'
    target.model = frozen.model
    target.num_codes = frozen.objective.quantizer.num_codes
    target.code_width = frozen.objective.quantizer.width
    target.mean, target.std = frozen.data.mean, frozen.data.std
    config.objective.masking.update(MASKS[scale])
    config.objective.morphing.schedule = 'random'
    config.objective.branch_layer = 2 if scale == 'embedded' else 9
    config.objective.branch_depth = 1 if scale == 'embedded' else 2
    if scale == 'vitb':
        config.optimizer.scaling = 'none'
        config.train.whole_batches = True
    return config
