"""A classifier on a frozen encoder, trained with augmentation: linear or attentive probing.

    python -m mim_jax.main --config=configs/probe.py --config.init.weights=runs/mae
    python -m mim_jax.main --config=configs/probe.py:attentive_cifar10 \\
        --config.init.weights=runs/mae_cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/probe.py:linear_embedded \\
        --config.init.weights=runs/mae_embedded

The argument is linear or attentive, `_`, and the size: vitb (ImageNet-1K), cifar10, embedded. The
section `model` is that of mae.py at that size; for another encoder set it as its own run has it.
Without `init.weights` the encoder stays as it is drawn. The figures are eval/accuracy/….

linear_vitb is MAE's linear probe (He et al., CVPR 2022, appendix A.1, and main_linprobe.py of its
released code): class token, batch norm without affine, LARS, 90 epochs of batches of 16,384.
Published: 68.0 top-1 for ViT-B after 1600 epochs of MAE. attentive_vitb is CAE's attentive probe
(Chen et al., IJCV 2023, and tools/run_attentive.py with scripts/cae_base_800e.sh of its released
code): SGD, 90 epochs of batches of 8,192. Published there: 74.2 for that MAE. Not as there: the
batch norm sees the whole batch, not a device's share of it; its epsilon is 1e-6, CAE's 1e-5. The
large size has not been run by this project; the smaller ones are ours. To see each image once
instead of 90 times, without augmentation: the evaluators `linear` and `attentive`.
"""

from _scales import at, borrowed
from mae import get_config as mae

from mim_jax.experiment import default_config


def probe(scale, **optimizer):
    config = borrowed('classification', mae(scale))
    config.objective.update(
        pool_norm=False,
        batch_norm=True,
        head_scale=0.93,  # a deviation of 0.01
    )
    config.optimizer = default_config('classification').optimizer
    config.optimizer.update(frozen=('encoder',), momentum=0.9, weight_decay=0.0, **optimizer)
    config.data.crop.scale = (0.08, 1.0)
    config.eval.update(evaluators=('accuracy',))
    if scale == 'vitb':
        config.train.total_epochs = 90.0
        config.optimizer.warmup_epochs = 10.0
        config.checkpoint.milestone_epochs = None
        config.eval.every_epochs = 10.0
        config.eval.batch_size = 4096
    elif scale == 'cifar10':
        config.train.total_epochs = 50.0
        config.optimizer.warmup_epochs = 5.0
        config.eval.every_epochs = 10.0
    else:
        config.train.total_steps = 1000
        config.optimizer.warmup_percent = 10.0
    return config


def linear(scale):
    # LARS moves a kernel by a share of its norm: the fewer the steps, the larger the rate.
    rates = {'vitb': 0.1, 'cifar10': 10.0, 'embedded': 30.0}
    config = probe(scale, rule='lars', learning_rate=rates[scale])
    if scale == 'vitb':
        config.data.batch_size = 16384
        config.objective.pooling = 'class_token'
    return config


def attentive(scale):
    # 0.4 at a batch of 8,192.
    config = probe(scale, rule='sgd', learning_rate=0.0125 if scale == 'vitb' else 0.05)
    config.objective.pooling = 'attentive'
    if scale == 'vitb':
        config.data.batch_size = 8192
    return config


def get_config(name='linear_vitb'):
    sizes = {
        f'{kind.__name__}_{scale}': (kind, scale)
        for kind in (linear, attentive)
        for scale in ('vitb', 'cifar10', 'embedded')
    }
    kind, scale = at(sizes, name)
    return kind(scale)
