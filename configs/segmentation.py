"""Semantic segmentation: UPerNet on ADE20K from a pre-trained encoder, ViT-B/16; or smaller.

    python -m mim_jax.main --config=configs/segmentation.py --config.init.weights=runs/dtm_vitb
    python -m mim_jax.main --config=configs/segmentation.py:vits --config.init.weights=runs/dtm_vits
    python -m mim_jax.main --config=configs/segmentation.py:vitl --config.init.weights=runs/dtm_vitl
    python -m mim_jax.main --config=configs/segmentation.py:vitb_linear --config.init.weights=…

ADE20K lies in `ade20k`: images/{training,validation}/*.jpg, annotations/…/*.png
(`--config.data.source.path=DIR/images --config.data.source.map_path=DIR/annotations`).

The recipe is that of BEiT v2's released code (microsoft/unilm, beit2/semantic_segmentation) on
mmseg 0.11, which DTM's paper follows: 512 x 512 pixels, 160,000 steps of 16 images, AdamW 5e-5 with
layer decay 0.75 (large: 4e-5, 0.9), drop path 0.15 (0.2), UPerNet as wide as the encoder, an
auxiliary head of weight 0.4, linear decay to 0. Published with it: 53.1 mIoU for BEiT v2's
ViT-B/16 of 1,600 epochs. For ViT-S, whose settings are not public, width and heads alone change.
Decided here: bfloat16 instead of float16, rematerialisation, evaluation every 16,000 steps.
`vitb_linear` trains a linear layer on the frozen encoder; its rate, 1e-3, and its 40,000 steps are
ours. Not run at these sizes by this project; their cost has not been measured.

    python -m mim_jax.main --config=configs/quickstart.py
    python -m mim_jax.main --config=configs/segmentation.py:embedded \\
        --config.init.weights=runs/quickstart

`embedded` finds the digits in 256 labelled scenes (two classes: ground and digit), starting from
the encoder of the quick start; without `init.weights` from scratch, with the same budget.
"""

from _released import as_released
from dtm_vitb import get_config as dtm_vitb
from dtm_vitl import get_config as dtm_vitl
from dtm_vits import get_config as dtm_vits
from quickstart import get_config as quickstart

from mim_jax.config import option
from mim_jax.data import SOURCES
from mim_jax.experiment import default_config
from mim_jax.models.segmenters import SEGMENTERS


def ade20k(config):
    """ADE20K in its folders, seen as mmseg sees it."""
    config.data.source = option(
        SOURCES,
        'folder',
        path='ade20k/images',
        map_path='ade20k/annotations',
        map_classes=150,
        reduce_zero_label=True,
    )
    config.data.update(
        split='training',
        eval_split='validation',
        image_size=(512, 512),
        batch_size=16,
        flip=0.5,
        workers=-1,
    )
    config.data.crop.update(mode='scaled', interpolation='linear')
    config.objective.distortion.probability = 0.5
    config.objective.mean_over = 'all'


def released(model, *, learning_rate, layer_decay, drop_path):
    """The recipe for one of the encoders of DTM's configs."""
    config = default_config('segmentation')
    config.model = model
    # The shared table is added to every block's own when the weights are read, as in that code.
    config.model.update(
        mask_token=False, relative_position='per_block', final_norm=False, drop_path=drop_path
    )
    config.objective.head.channels = model.width
    ade20k(config)
    config.optimizer.update(
        learning_rate=learning_rate,
        scaling='none',
        schedule='linear',
        warmup_steps=1500,
        beta2=0.999,
        weight_decay=0.05,
        layer_decay=layer_decay,
    )
    as_released(config)
    config.optimizer.decay_also = ('class_token', 'relative_position')
    config.train.total_steps = 160_000
    config.checkpoint.update(every_steps=4000, keep=2)
    config.eval.update(evaluators=('segmentation',), every_steps=16_000)
    config.eval.segmentation.mode = 'slide'
    config.log.pictures_every_steps = 16_000
    return config


def vitb():
    return released(dtm_vitb().model, learning_rate=5e-5, layer_decay=0.75, drop_path=0.15)


def vits():
    return released(dtm_vits().model, learning_rate=5e-5, layer_decay=0.75, drop_path=0.15)


def vitl():
    return released(dtm_vitl().model, learning_rate=4e-5, layer_decay=0.9, drop_path=0.2)


def vitb_linear():
    config = vitb()
    config.objective.head = option(SEGMENTERS, 'linear')
    config.model.final_norm = True
    config.model.drop_path = 0.0
    config.optimizer.update(learning_rate=1e-3, layer_decay=None, frozen=('encoder',))
    config.train.total_steps = 40_000
    return config


def embedded():
    config, quick = default_config('segmentation'), quickstart()
    config.data, config.model = quick.data, quick.model
    config.data.source.num_train = 256
    config.data.batch_size = 32
    config.model.update(mask_token=False, final_norm=False, drop_path=0.1)
    config.objective.map = 'mask'
    config.objective.head.update(channels=32, auxiliary_channels=16, dropout=0.0)
    config.optimizer.update(
        learning_rate=1.5e-3,
        scaling='none',
        schedule='linear',
        warmup_percent=10.0,
        beta2=0.99,
        layer_decay=0.75,
        clip_norm=1.0,
    )
    config.train.total_steps = 120
    config.checkpoint.every_percent = 50.0
    config.eval.update(evaluators=('segmentation',), every_percent=50.0)
    config.eval.segmentation.max_test = 512
    config.log.update(every_steps=20, pictures_every_percent=50.0)
    return config


SIZES = {
    'vitb': vitb,
    'vits': vits,
    'vitl': vitl,
    'vitb_linear': vitb_linear,
    'embedded': embedded,
}


def get_config(size='vitb'):
    if size not in SIZES:
        raise ValueError(f'the argument is one of {", ".join(SIZES)}, not {size!r}')
    return SIZES[size]()
