"""Frozen teachers, one entry each: what `config.objective.target` says of a network.

    python -m mim_jax.weights import FILE_OR_DIR --out=teachers/NAME
    python -m mim_jax.main --config=configs/dtm_vitb.py:NAME

FILE_OR_DIR is what the entry's source publishes; `import` prints the `model` section that the file
has, which must be the entry's. Any other teacher is `target.weights` and `target.model` set by
hand: a file, an imported folder or the work directory of a run.
"""

from mim_jax.weights import naming

CLIP = dict(
    position='learned', patch_bias=False, pre_norm=True, activation='quick_gelu', norm_eps=1e-5
)
CLIP_INPUT = dict(zip(('mean', 'std'), naming.CLIP, strict=True))
IMAGENET = dict(zip(('mean', 'std'), naming.IMAGENET, strict=True))
BASE = dict(patch_size=(16, 16), width=768, depth=12, heads=12)

# name: (fields of the target, fields of its model)
TEACHERS = {
    # OpenAI's CLIP, tokens projected to the space of its texts.
    'clip_vitb16': (dict(projection=512, **CLIP_INPUT), dict(**BASE, **CLIP)),
    # 16 x 16 tokens of 224 pixels, resampled to the student's grid.
    'clip_vitl14': (
        dict(projection=768, **CLIP_INPUT),
        dict(patch_size=(14, 14), width=1024, depth=24, heads=16, **CLIP),
    ),
    # facebookresearch/dino and facebookresearch/mae.
    'dino_vitb16': (dict(**IMAGENET), dict(**BASE, position='learned')),
    'mae_vitb16': (dict(**IMAGENET), dict(**BASE, position='sincos')),
    # microsoft/unilm, beit2: the self-supervised network, before any fine-tuning.
    'beitv2_vitb16': (
        dict(**IMAGENET),
        dict(
            **BASE,
            position='none',
            relative_position='shared',
            qkv_bias='qv',
            layer_scale=0.1,
        ),
    ),
}


def set_teacher(config, name):
    """Makes the network `name` of TEACHERS the config's target."""
    if name not in TEACHERS:
        raise ValueError(f'the argument is one of {", ".join(TEACHERS)}, not {name!r}')
    fields, model = TEACHERS[name]
    target = config.objective.target
    target.weights = f'teachers/{name}'
    target.update(fields)
    target.model.update(model, dtype='bfloat16')
