"""De3: ViT-B/16, pre-trained by NIM, fine-tuned on ImageNet-1K behind NIM as a defence, 100 epochs.

Paper: You et al., "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense",
NeurIPS 2023, arXiv 2302.01056.

    python -m mim_jax.main --config=configs/nim.py
    python -m mim_jax.main --config=configs/de3.py --config.init.weights=runs/nim
    python -m mim_jax.main --config=configs/de3.py:cifar10 --config.init.weights=runs/nim_cifar10
    python -m mim_jax.main --config=configs/de3.py:embedded --config.init.weights=runs/nim_embedded

The denoiser is the work directory of a run of nim.py with the same argument, or
`--config.objective.denoiser.weights=WORKDIR`; `init.weights` is where the classifier starts from,
in the paper the encoder of the same run. Noise alone, its option `no_denoising`:
`--config.objective.defence=noise`.

The recipe is MAE's fine-tuning, as in the released code (youzunzhi/NIM-AdvDef): batch 1024, rate
1e-3 per 256, layer decay 0.75, 5 epochs of warm-up, last rate 1e-6, drop path 0.1, the mixing,
erasing and RandAugment of finetune.py. Noise of U(0, 30) grey levels in training, of 70 when
classifying (at which that code evaluates during training; it tests attacks at 70 and 140). Its
README publishes no figure. This config has not been run to the end at the large size by this
project; its cost has not been measured. The small sizes are those of finetune.py, with the network
of nim.py.
"""

from _scales import at, borrowed
from finetune import get_config as finetune
from nim import get_config as nim


def get_config(scale='vitb'):
    at(dict.fromkeys(('vitb', 'cifar10', 'embedded')), scale)
    base, frozen = finetune(scale), nim(scale)
    config = borrowed('de3', base)
    config.objective.update({k: v for k, v in base.objective.items() if k != 'name'})
    denoiser = config.objective.denoiser
    denoiser.weights = 'runs/nim' + ('' if scale == 'vitb' else f'_{scale}')
    denoiser.model, denoiser.decoder = frozen.model, frozen.objective.decoder
    config.model = nim(scale).model
    config.model.update(final_norm=False, drop_path=base.model.drop_path)
    config.data.mean, config.data.std = frozen.data.mean, frozen.data.std
    config.optimizer.decay_also = ()
    if scale == 'vitb':
        config.optimizer.update(
            learning_rate=1e-3,
            scaling='linear',
            reference_batch=256,
            layer_decay=0.75,
            warmup_epochs=5.0,
        )
    return config
