"""Transfer: a pre-trained ViT-B/16 fine-tuned on another data set than the one it was trained on.

    python -m mim_jax.main --config=configs/transfer.py:inat2018 --config.init.weights=runs/dtm_vitb
    python -m mim_jax.main --config=configs/transfer.py:cub200 --config.init.weights=runs/dtm_vitb

The argument is one of `inat2018` (the default), `inat2019`, `cub200`, `cars`, `flowers`, `pets`,
`food101`, `cifar10`, `cifar100`. All but one are read as TFDS prepares them, by the names and
splits below; `inat2019`, which TFDS does not have, from inat2019/{train,val}/CLASS/*.jpg. Any of
them can be read from folders, `--config.data.source.name=folder --config.data.source.path=DIR`;
`flowers`, whose 1,020 images for training and 1,020 for validation are trained on together as is
usual, then with `--config.data.split=train`.

Encoder, augmentation and optimiser are those of finetune.py:vitb. Decided here, since DTM (which
reports iNaturalist and fine-grained classification, arXiv 2401.00254) publishes no command for it:
epochs, batch and warm-up of each set, the learning rate in proportion to the batch, smallest crops
of half the image where images are small, and everything at 224 pixels. None of these has been run
by this project; their cost has not been measured.
"""

from _scales import at
from finetune import vitb

from mim_jax.config import option
from mim_jax.data import SOURCES

# The argument: TFDS's name (None: a folder), splits, images per step, epochs.
SETS = {
    'inat2018': ('i_naturalist2018', 'train', 'validation', 1024, 100.0),
    'inat2019': (None, 'train', 'val', 1024, 100.0),
    'cub200': ('caltech_birds2011', 'train', 'test', 256, 100.0),
    'cars': ('cars196', 'train', 'test', 256, 100.0),
    'flowers': ('oxford_flowers102', 'train+validation', 'test', 256, 200.0),
    'pets': ('oxford_iiit_pet', 'train', 'test', 256, 100.0),
    'food101': ('food101', 'train', 'validation', 512, 50.0),
    'cifar10': ('cifar10', 'train', 'test', 512, 50.0),
    'cifar100': ('cifar100', 'train', 'test', 512, 50.0),
}


def get_config(dataset='inat2018'):
    name, split, eval_split, batch_size, epochs = at(SETS, dataset)
    config = vitb()
    if name is None:
        config.data.source = option(SOURCES, 'folder', path=dataset)
    else:
        config.data.source = option(SOURCES, 'tfds', dataset=name)
    config.data.update(split=split, eval_split=eval_split, batch_size=batch_size)
    if dataset.startswith('cifar'):
        config.data.crop.scale = (0.5, 1.0)
        config.data.eval_crop = 1.0
    config.optimizer.update(scaling='linear', reference_batch=1024, warmup_epochs=0.1 * epochs)
    config.train.update(total_epochs=epochs, whole_batches=False)
    config.eval.every_epochs = 0.1 * epochs
    return config
