"""The quick start: Dynamic Token Morphing from a small frozen teacher on the embedded scenes.

    python -m mim_jax.main --config=configs/quickstart.py

The flagship's own flow at a size for two CPU cores: a pre-trained teacher (quickstart_teacher.py),
a student with mask tokens, morphed targets. Small batches and few hidden patches: a run of two
minutes is short of updates, not of data. The same run without morphing, the paper's token-wise
baseline:

    python -m mim_jax.main --config=configs/quickstart.py --workdir=runs/quickstart_tokenwise \\
        --config.objective.morphing.schedule=none
"""

from pathlib import Path

from quickstart_teacher import get_config as teacher

from mim_jax.experiment import default_config

ASSETS = Path(__file__).resolve().parent.parent / 'mim_jax' / 'assets'


def get_config():
    config = default_config('dtm')
    config.data = teacher().data
    config.data.batch_size = 64
    config.model.update(patch_size=(6, 6), width=96, depth=3, heads=3, mask_token=True, scan=False)
    config.objective.masking.update(num_masked=12, min_block=4)
    target = config.objective.target
    target.weights = str(ASSETS / 'quickstart_teacher.safetensors')
    target.model = teacher().model
    target.model.scan = False
    target.mean, target.std = config.data.mean, config.data.std
    config.optimizer.update(
        learning_rate=2e-3,
        scaling='none',
        end_learning_rate=1e-5,
        warmup_percent=10.0,
        beta2=0.98,
        clip_norm=3.0,
    )
    config.train.total_steps = 480
    config.checkpoint.every_percent = 25.0
    config.eval.every_percent = 50.0
    for name in ('knn', 'linear', 'attentive', 'fewshot'):
        config.eval[name].update(max_train=4096, max_test=1024)
    config.eval.attentive.epochs = 30  # 90 by default: minutes
    config.log.every_steps = 20
    config.log.pictures_every_percent = 50.0
    return config
