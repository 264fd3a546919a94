"""VQ-KD, BEiT v2's tokenizer: ViT-B/16, 8,192 codes of 32 numbers, CLIP ViT-B/16 features.

    python -m mim_jax.main --config=configs/vqkd.py
    python -m mim_jax.main --config=configs/vqkd.py:cifar10 --config.data.source.path=DIR
    python -m mim_jax.main --config=configs/vqkd.py:embedded

The run's work directory (`runs/vqkd_SCALE`) is the tokenizer of beitv2.py. Paper: Peng et al.,
"BEiT v2", arXiv 2208.06366, with the released code's recipe: 100 epochs of 512. It does not state
the learning rate; 2e-4 is ours. This config has not been run to the end at the large size by this
project; its cost has not been measured.
"""

from _scales import PLAIN, scaled

SIZES = {
    'vitb': (8192, 32, dict(width=768, depth=3, heads=12, dtype='bfloat16')),
    'cifar10': (512, 16, dict(width=192, depth=2, heads=3)),
    'embedded': (64, 8, dict(width=96, depth=1, heads=3, scan=False)),
}


def get_config(scale='vitb'):
    config, teacher = scaled('vqkd', scale)
    config.model.update(PLAIN, position='learned', initialization='beit')
    num_codes, width, decoder = SIZES[scale]
    config.objective.quantizer.update(num_codes=num_codes, width=width)
    config.objective.decoder.update(decoder)
    with config.objective.unlocked():
        config.objective.target = teacher
    if scale == 'vitb':
        config.data.update(batch_size=512, mean=(0.5,) * 3, std=(0.5,) * 3)
        config.data.crop.scale = (0.08, 1.0)
        config.optimizer.update(
            learning_rate=2e-4, scaling='none', beta2=0.99, weight_decay=1e-4, clip_norm=None
        )
        config.train.total_epochs = 100.0
    return config
