"""Host side of the data: a source of images, the view of each, batches of uint8, feeding.

Nothing here computes with JAX, so that spawned workers touch no device; the device side (flip,
colour jitter, normalisation) is `mim_jax.data.augment`.
"""

from mim_jax.data.config import Crop, DataConfig, Embedded
from mim_jax.data.pipeline import EvalBatches, TrainBatches, eval_batches, train_batches
from mim_jax.data.prefetch import DevicePrefetch, device_prefetch
from mim_jax.data.sources import Source, make_source

__all__ = [
    'Crop',
    'DataConfig',
    'DevicePrefetch',
    'Embedded',
    'EvalBatches',
    'Source',
    'TrainBatches',
    'device_prefetch',
    'eval_batches',
    'make_source',
    'train_batches',
]
