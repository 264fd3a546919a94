"""Fine-tuning as published: ViT-B/16 on ImageNet-1K labels for 100 epochs, or another size.

    python -m mim_jax.main --config=configs/finetune.py --config.init.weights=runs/dtm_vitb
    python -m mim_jax.main --config=configs/finetune.py:vitl --config.init.weights=runs/dtm_vitl
    python -m mim_jax.main --config=configs/finetune.py:vitb_384 --config.init.weights=WORKDIR
    python -m mim_jax.main --config=configs/finetune.py:embedded \\
        --config.init.weights=runs/quickstart

The argument is one of `vits`, `vitb` (the default), `vitl`, `vitb_384`, `cifar10`, `embedded`; the
encoder is that of the DTM config of its size, with a norm behind the pooling and not before it, and
the weights may be any run's whose encoder is the same. Without `init.weights` the run starts from
scratch. docs/finetuning.md explains the fields and says how encoders of other methods are taken.

`vitb` is the command and code that DTM released (naver-ai/dtm, run_class_finetuning.py; arXiv
2401.00254; 85.4 top-1 after 300 epochs of pre-training): batch 1,024, AdamW from 0 to 5e-4 and down
to 1e-6, layer decay 0.65, drop path 0.1, weight decay 0.05 on relative tables too, RandAugment
rand-m9-mstd0.5-inc1, bicubic and filled with the mean colour, erasing 0.25, mixup 0.8 or CutMix 1.0
drawn once for a batch, smoothing 0.1, 1,251 steps an epoch, evaluation at 0.875 (224 of 256). Its
command leaves the length to the run: 100 epochs, of which 20 warm up, are those of BEiT v2, whose
code it is built on. It keeps no average; its option for one is `--config.train.ema.decay=0.9999
--config.eval.use_ema=true`.

`vitl` is BEiT v2's released recipe for L after 300 epochs: 50 epochs, of which 5 warm up, layer
decay 0.8, drop path 0.2. `vits` is ours: B's recipe, since neither project says another (DTM
publishes 83.2). `vitb_384` is B's recipe at 384 pixels, at which that code evaluates without a
margin; tables come to the new grid by this project's interpolation, not by that code's. `cifar10`
and `embedded` are ours. None of the large ones has been run to the end by this project; their cost
has not been measured.

`embedded` learns from the labels of 1,024 scenes, few enough that what was learned without them
shows: 59.0 % of 2,048 test scenes from the quick start, 11.3 % from scratch by the same command
(docs/finetuning.md). It erases and mixes nothing, and its RandAugment is one operation: a choice
for so short a run, not the result of a comparison.
"""

import _data
from _released import as_released
from _scales import at
from dtm_cifar10 import get_config as cifar10_encoder
from dtm_vitb import get_config as vitb_encoder
from dtm_vitl import get_config as vitl_encoder
from dtm_vits import get_config as vits_encoder
from quickstart import get_config as embedded_encoder

from mim_jax.experiment import default_config


def tuned(pretraining):
    """Classification with the encoder of a config that pre-trains it, and all that is published
    beside data, batch and length.
    """
    config = default_config('classification')
    config.model = pretraining.model
    config.model.update(mask_token=False, final_norm=False, drop_path=0.1)
    if config.model.relative_position != 'none':
        config.model.relative_position = 'per_block'  # a shared table is added to each block's
        as_released(config)
        config.optimizer.decay_also = ('relative_position',)
    config.objective.update(
        pooling='mean',
        pool_norm=True,
        head_scale=0.001,
        label_smoothing=0.1,
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
    )
    config.data.randaugment.update(num_ops=2, magnitude=9.0, magnitude_std=0.5, increasing=True)
    config.optimizer.update(
        learning_rate=5e-4,
        scaling='none',
        end_learning_rate=1e-6,
        beta2=0.999,
        weight_decay=0.05,
        layer_decay=0.65,
    )
    config.eval.evaluators = ('accuracy',)
    return config


def vitb(pretraining=vitb_encoder):
    config = tuned(pretraining())
    _data.imagenet(config)
    config.data.batch_size = 1024
    config.data.crop.scale = (0.08, 1.0)
    config.data.eval_crop = 0.875
    config.optimizer.warmup_epochs = 20.0
    config.train.update(total_epochs=100.0, whole_batches=True)
    config.checkpoint.update(every_epochs=1.0, keep=2)
    config.eval.every_epochs = 5.0
    return config


def vits():
    return vitb(vits_encoder)


def vitl():
    config = vitb(vitl_encoder)
    config.model.drop_path = 0.2
    config.optimizer.update(layer_decay=0.8, warmup_epochs=5.0)
    config.train.total_epochs = 50.0
    return config


def vitb_384():
    config = vitb()
    config.data.update(image_size=(384, 384), eval_crop=1.0)
    return config


def cifar10():
    config = tuned(cifar10_encoder())
    _data.cifar10(config)
    config.data.update(batch_size=512, eval_crop=1.0)
    config.data.crop.update(mode='simple', pad=4)
    config.optimizer.update(learning_rate=1e-3, warmup_epochs=5.0, layer_decay=0.75)
    config.train.total_epochs = 100.0
    config.checkpoint.update(every_epochs=5.0, keep=2)
    config.eval.every_epochs = 10.0
    return config


def embedded():
    quickstart = embedded_encoder()
    config = tuned(quickstart)
    config.data = quickstart.data
    config.data.batch_size = 64
    config.data.source.num_train = 1024
    config.data.randaugment.num_ops = 1
    config.objective.update(mixup=0.0, cutmix=0.0, erasing=0.0)
    config.model.drop_path = 0.0
    config.optimizer.update(
        learning_rate=1e-3, warmup_percent=10.0, beta2=0.98, layer_decay=0.8, clip_norm=3.0
    )
    config.train.total_steps = 240
    config.checkpoint.every_percent = 50.0
    config.eval.every_percent = 50.0
    config.eval.accuracy.max_test = 2048
    config.log.every_steps = 20
    return config


def get_config(scale='vitb'):
    sizes = (vits, vitb, vitl, vitb_384, cifar10, embedded)
    return at({size.__name__: size for size in sizes}, scale)()
