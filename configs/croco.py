"""CroCo, cross-view completion, ViT-B/16, pairs of images, 400 epochs.

Paper: Weinzaepfel et al., "CroCo: Self-Supervised Pre-training for 3D Vision Tasks by Cross-View
Completion", NeurIPS 2022, arXiv 2210.10716.

    python -m mim_jax.main --config=configs/croco.py --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/croco.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/croco.py:embedded

DIR of the first holds the pairs, STEM_1.jpg and STEM_2.jpg: two views of one scene, 256 x 256
pixels, rendered by Habitat in the paper. They have no labels, so that nothing is evaluated during
the run. `cifar10` (data as in mae.py) and `embedded` take two crops of one image for a
pair; their crops, decoders, optimiser and lengths are ours, masks, colours and loss the recipe's.
The large size is the released recipe throughout, whose learning rate follows a schedule of 800
epochs that is left at 400; only that it computes in bfloat16, not in float16, and that the jitter
of brightness, contrast and saturation has this order, there a random one. Published results are
those of depth and flow after fine-tuning; there is none on ImageNet's labels. This config has not
been run to the end at the large size by this project; its cost has not been measured.
"""

from _scales import PLAIN, scaled

from mim_jax.config import option
from mim_jax.data import SOURCES

DECODERS = {
    'vitb': dict(width=512, depth=8, heads=16, dtype='bfloat16', remat='full'),
    'cifar10': dict(width=128, depth=4, heads=4),
    'embedded': dict(width=48, depth=2, heads=3, scan=False),
}


def get_config(scale='vitb'):
    config, _ = scaled('croco', scale)
    config.model.update(PLAIN, class_token=False)
    config.objective.decoder.update(DECODERS[scale])
    config.data.flip = 0.0
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    if scale == 'vitb':
        config.data.source = option(SOURCES, 'folder', path='pairs', pairs=True)
        config.data.update(batch_size=256, eval_split=None)
        config.data.crop.update(mode='simple', resize=256 / 224)
        config.eval.evaluators = ()
        config.optimizer.update(
            learning_rate=1.5e-4,
            scaling='linear',
            reference_batch=256,
            end_learning_rate=0.0,
            warmup_epochs=40.0,
            horizon=2.0,
            beta2=0.95,
            weight_decay=0.05,
            clip_norm=None,
        )
        config.train.total_epochs = 400.0
    else:
        config.objective.pair = 'image'
        config.data.crop.update(mode='random', scale=(0.5, 1.0))
    return config
