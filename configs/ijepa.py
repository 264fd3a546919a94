"""I-JEPA, ViT-B/16, ImageNet-1K, 600 epochs.

Paper: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture", CVPR 2023, arXiv 2301.08243.

    python -m mim_jax.main --config=configs/ijepa.py
    python -m mim_jax.main --config=configs/ijepa.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/ijepa.py:embedded

With morphing of the predicted tokens: `--config.objective.morphing.schedule=random`.

Data as in dtm_vitb.py. The released code has recipes of ViT-H and ViT-g alone, and what they share
is theirs: batch 2048, rates, weight decay from 0.04 to 0.4, which falls on the mask token too,
average, blocks, views without flip and colours, initialisation, no clipping, epochs of whole
batches. Of ViT-B, a predictor of 6 blocks and 600 epochs are those of DMT-JEPA's code, which is
built on it. Decided here: 50 visible patches in every image, drawn at random from its context,
where the released code keeps the first ones, as many as the least of a device's batch has (50 on
average for 128 images); the average is what is evaluated, as in the paper. Published: 72.9 top-1 by
a linear classifier (a figure from memory). At the small sizes model, length and batch are those of
the DTM config of the same size; predictor, visible patches, rates and average are ours. This config
has not been run to the end by this project; its cost has not been measured.
"""

from _scales import PLAIN, scaled

PREDICTORS = {
    'vitb': dict(width=384, depth=6, heads=12, dtype='bfloat16', remat='full'),
    'cifar10': dict(width=96, depth=3, heads=3),
    'embedded': dict(width=48, depth=2, heads=3, scan=False),
}


def get_config(scale='vitb', objective='ijepa'):
    config, _ = scaled(objective, scale)
    config.model.update(PLAIN, class_token=False, initialization='normal')
    config.objective.predictor.update(PREDICTORS[scale])
    config.data.flip = 0.0
    config.data.colors.update(brightness=0.0, contrast=0.0, saturation=0.0)
    config.optimizer.update(
        learning_rate=1e-3,
        scaling='none',
        warmup_learning_rate=2e-4,
        end_learning_rate=1e-6,
        beta2=0.999,
        weight_decay=0.04,
        end_weight_decay=0.4,
        decay_also=('mask_token',),
        clip_norm=None,
    )
    average = dict(decay=0.996, end_decay=1.0, schedule='linear', parts=('encoder',))
    config.train.ema.update(average)
    config.eval.use_ema = True
    if scale == 'vitb':
        config.data.batch_size = 2048
        config.data.crop.scale = (0.3, 1.0)
        config.optimizer.warmup_epochs = 40.0
        config.train.update(total_epochs=600.0, whole_batches=True)
        config.checkpoint.milestone_epochs = 100.0
        config.eval.every_epochs = 50.0
    else:
        config.objective.masking.num_context = 12
    if scale == 'embedded':
        config.train.ema.decay = 0.98
    return config
