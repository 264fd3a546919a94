"""Host side of the data: a source of items, the views of each, batches of uint8, feeding.

Nothing here computes with JAX, so that spawned workers touch no device; the device side (flips,
colours, mixing, normalisation) is `mim_jax.data.augment`, `colors` and `mixing`.
"""

from mim_jax.data.config import DataConfig
from mim_jax.data.distortion import PhotometricDistortion
from mim_jax.data.fields import Field, find, image_fields, num_classes
from mim_jax.data.picture import Picture
from mim_jax.data.pipeline import EvalBatches, TrainBatches, eval_batches, train_batches
from mim_jax.data.prefetch import DevicePrefetch, device_prefetch
from mim_jax.data.sources import SOURCES, Source, make_source
from mim_jax.data.specification import ArraySpec, Views, batch_spec, check_views, eval_views
from mim_jax.data.view import FIRST_COLORS, JITTER, SECOND_COLORS, Colors, Crop, View

__all__ = [
    'FIRST_COLORS',
    'JITTER',
    'SECOND_COLORS',
    'SOURCES',
    'ArraySpec',
    'Colors',
    'Crop',
    'DataConfig',
    'DevicePrefetch',
    'EvalBatches',
    'Field',
    'PhotometricDistortion',
    'Picture',
    'Source',
    'TrainBatches',
    'View',
    'Views',
    'batch_spec',
    'check_views',
    'device_prefetch',
    'eval_batches',
    'eval_views',
    'find',
    'image_fields',
    'make_source',
    'num_classes',
    'train_batches',
]
