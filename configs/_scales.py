"""Three sizes of a method: `vitb` (ImageNet-1K, the paper's), `cifar10`, `embedded`.

Not a config of its own: the methods' configs take a size as their argument.
"""

from _released import as_by_default
from dtm_cifar10 import get_config as cifar10
from dtm_vitb import get_config as vitb
from quickstart import get_config as embedded

from mim_jax.experiment import default_config

SCALES = {'vitb': vitb, 'cifar10': cifar10, 'embedded': embedded}
# A ViT without BEiT's refinements, which the DTM configs have.
PLAIN = dict(
    mask_token=False,
    position='sincos',
    relative_position='none',
    qkv_bias='all',
    layer_scale=None,
    drop_path=0.0,
    initialization='mae',
)
SHARED = ('data', 'model', 'optimizer', 'train', 'checkpoint', 'eval', 'log')


def at(sizes, scale):
    """sizes[scale]; a ValueError names the sizes there are."""
    if scale not in sizes:
        raise ValueError(f'the argument is one of {", ".join(sizes)}, not {scale!r}')
    return sizes[scale]


def borrowed(objective, config):
    """A config of an objective with all sections of another config but the objective's."""
    new = default_config(objective)
    for section in SHARED:
        new[section] = config[section]
    return new


def scaled(objective, scale):
    """(config of an objective in the size of the DTM config of that scale, that one's teacher).

    What DTM's released code does beside its paper is not borrowed.
    """
    dtm = at(SCALES, scale)()
    config = borrowed(objective, dtm)
    as_by_default(config)
    return config, dtm.objective.target
