"""The quick start's teacher: a small ViT trained on the labels of the embedded scenes.

    python -m mim_jax.main --config=configs/quickstart_teacher.py
    python -m mim_jax.weights export --workdir=runs/quickstart_teacher --dtype=float16 \\
        --out=mim_jax/assets/quickstart_teacher.safetensors

It stands in for CLIP: quickstart.py learns from its frozen features.
"""

from mim_jax.experiment import default_config


def get_config():
    config = default_config('classification')
    config.model.update(patch_size=(6, 6), width=96, depth=4, heads=3)
    config.objective.update(head_scale=1.0, label_smoothing=0.1)
    config.data.update(
        image_size=(48, 48),
        batch_size=128,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    config.data.crop.mode = 'none'
    config.data.source.num_train = 65536
    config.optimizer.update(
        learning_rate=1.5e-3, scaling='none', warmup_percent=5.0, beta2=0.99, clip_norm=1.0
    )
    config.train.total_steps = 2000
    config.checkpoint.every_percent = 20.0
    config.eval.every_percent = 20.0
    config.eval.knn.update(max_train=4096, max_test=1024)
    config.log.every_steps = 50
    return config
