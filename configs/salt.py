"""SALT, ViT-B/16, ImageNet-1K, 160,000 steps with a frozen teacher of 80,000.

    python -m mim_jax.main --config=configs/salt_teacher.py
    python -m mim_jax.main --config=configs/salt.py

and likewise with the argument `:cifar10` (and `--config.data.source.path=DIR`) or `:embedded`. The
teacher is the work directory of the first command, `runs/salt_teacher`; any other run or weight
file is named by `--config.objective.target.weights=PATH`, with `objective.target.model` where its
encoder is another one, narrower or wider. So a student is the next teacher, in a chain:

    python -m mim_jax.main --config=configs/salt.py --workdir=runs/salt_third \\
        --config.objective.target.weights=runs/salt --config.train.total_steps=80000

V-JEPA, where the average of the encoder teaches in one run: `--config.objective.target.name=ema
--config.train.ema.decay=0.998 --config.train.ema.end_decay=1.0 --config.train.ema.schedule=linear`.
With morphing of the predicted tokens: `--config.objective.morphing.schedule=random`.

Paper: Li et al., "Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers", ICLR 2026,
arXiv 2509.24317, of videos; there is no released code. The paper's are masks, stages, losses,
predictor (12 blocks of width 384), batch 3072, rates, weight decay from 0.04 to 0.4, second beta
0.95, clipping at 0.02. Ours, where it is silent or has videos: images; fixed numbers of patches in
place of each batch's; sine-cosine positions for rotary ones; what V-JEPA's code does with targets
(mean 0, variance 1), views (crops, flip), first weights and the decay of mask tokens; a first stage
whose predictor has the shape of the second's. Published, by a frozen attentive classifier on
ImageNet-1K: 74.8 top-1 (trained on videos, 80,000 + 160,000 steps; V-JEPA 2: 66.9). At the small
sizes, model and batch are those of the DTM configs, predictors, numbers, rates and lengths ours.
This config has not been run to the end by this project; its cost has not been measured.
"""

from _scales import PLAIN, scaled

PREDICTORS = {
    'vitb': dict(dtype='bfloat16', remat='full'),
    'cifar10': dict(width=96, depth=3, heads=3),
    'embedded': dict(width=48, depth=2, heads=3, scan=False),
}


def recipe(scale):
    """What both stages share."""
    config, _ = scaled('salt', scale)
    config.model.update(PLAIN, class_token=False, initialization='normal')
    config.objective.predictor.update(PREDICTORS[scale])
    config.data.colors.update(brightness=0.0, contrast=0.0, saturation=0.0)
    config.optimizer.update(
        learning_rate=6.25e-4,
        scaling='none',
        warmup_learning_rate=2e-4,
        end_learning_rate=1e-6,
        beta2=0.95,
        weight_decay=0.04,
        end_weight_decay=0.4,
        decay_also=('mask_token',),
        clip_norm=0.02,
    )
    if scale == 'vitb':
        config.data.batch_size = 3072
        config.data.crop.update(scale=(0.3, 1.0), ratio=(0.75, 1.35))
        config.optimizer.update(warmup_epochs=None, warmup_steps=10_000)
        config.checkpoint.milestone_epochs = 50.0
    else:
        # What 24 images of 8 x 8 patches have at least, on average.
        config.objective.masking.short.update(num_context=13, num_predicted=31)
        config.objective.masking.long.update(num_context=5, num_predicted=44)
        config.optimizer.update(learning_rate=1e-3, clip_norm=1.0)
    config.train.total_epochs = None  # its length is in steps
    return config


def get_config(scale='vitb'):
    config = recipe(scale)
    target = config.objective.target
    target.weights = 'runs/salt_teacher' if scale == 'vitb' else f'runs/salt_teacher_{scale}'
    target.model = config.model
    target.mean, target.std = config.data.mean, config.data.std
    config.train.total_steps = {'vitb': 160_000, 'cifar10': 6_000, 'embedded': 480}[scale]
    return config
