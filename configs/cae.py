"""CAE, the context autoencoder, ViT-B/16, ImageNet-1K, 800 epochs.

Paper: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2023,
arXiv 2202.03026.

    python -m mim_jax.main --config=configs/cae.py
    python -m mim_jax.main --config=configs/cae.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/cae.py:embedded

The tokenizer is DALL-E's, `tokenizers/dalle.pt` (docs/targets.md says how that file is made); at
the small sizes the work directory of a run of vqkd.py with the same argument (`runs/vqkd_SCALE`).
Data: `_data.py`. The recipe is the released one (Atten4Vis/CAE), whose 300 and 1600 epochs have 10
and 40 of warm-up. Not as there: bfloat16 instead of float16; the tokenizer's 112 pixels are resized
from the student's 224 and not from the photo; a patch embedding that starts Xavier-uniform, as
all other layers do there too.
Published results after 800 epochs: 83.8 top-1 after fine-tuning on ImageNet-1K, 75.9 by an
attentive and 68.9 by a linear probe. This config has not been run to the end at the large size by
this project; its cost has not been measured.

At the small sizes half of the patches are hidden, too; the depths of regressor and decoder, model,
optimiser and length are ours: those of the DTM config of the same size, and at `cifar10` layer
scale and drop path are the recipe's.
"""

from _scales import PLAIN, scaled
from vqkd import get_config as tokenizer

from mim_jax.config import option
from mim_jax.targets.tokenizer import TOKENIZERS

MASKS = {
    'vitb': dict(num_masked=98, min_block=16),
    'cifar10': dict(num_masked=32, min_block=5),
    'embedded': dict(num_masked=32, min_block=5),
}
DEPTHS = {'vitb': 4, 'cifar10': 2, 'embedded': 1}


def encoder(config, scale):
    """BEiT's refinements without mask token and relative positions."""
    config.model.update(PLAIN)
    if scale != 'embedded':
        config.model.update(qkv_bias='qv', layer_scale=0.1, drop_path=0.1)
        config.model.token_initialization = 'cut'
        # That code leaves out what has one dimension, and these tokens have three.
        config.optimizer.decay_also = ('class_token', 'mask_token')
        config.optimizer.beta2 = 0.999


def get_config(scale='vitb'):
    config, _ = scaled('cae', scale)
    encoder(config, scale)
    config.objective.masking.update(MASKS[scale])
    config.objective.update(regressor_depth=DEPTHS[scale], decoder_depth=DEPTHS[scale])
    config.data.colors.update(brightness=0.0, contrast=0.0, saturation=0.0)
    if scale == 'vitb':
        config.objective.target.update(weights='tokenizers/dalle.pt', dtype='bfloat16')
        config.data.crop.scale = (0.08, 1.0)
        config.optimizer.update(scaling='none', warmup_epochs=20.0)
        config.train.update(total_epochs=800.0, whole_batches=True)
        config.checkpoint.milestone_epochs = 100.0
        config.eval.every_epochs = 50.0
    else:
        frozen = tokenizer(scale)
        book = frozen.objective.quantizer
        with config.objective.unlocked():
            config.objective.target = option(
                TOKENIZERS,
                'vqkd',
                weights=f'runs/vqkd_{scale}',
                num_codes=book.num_codes,
                code_width=book.width,
                mean=frozen.data.mean,
                std=frozen.data.std,
            )
        config.objective.target.model = frozen.model
    return config
