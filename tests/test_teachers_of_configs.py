"""The named teachers: networks of the sizes that their projects publish."""

import sys
from pathlib import Path

import jax
import pytest

from mim_jax import assembly, config, experiment
from mim_jax.data import image_fields

CONFIGS = Path(__file__).parent.parent / 'configs'

# Parameters of the image encoder in millions, as open_clip states them for CLIP (with projection)
# and as is well known of ViT-B (85.80); of that, MAE's fixed positions are no parameters, and BEiT
# v2 has 2 * 12 * 768 layer scales, 732 * 12 relative positions and no 12 * 768 key biases.
PUBLISHED = {
    'clip_vitb16': 86.19,
    'clip_vitl14': 303.97,
    'dino_vitb16': 85.80,
    'mae_vitb16': 85.65,
    'beitv2_vitb16': 85.67,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_its_size_is_the_published_one(name):
    run = experiment.from_config(config.load(f'{CONFIGS / "dtm_vitb.py"}:{name}'))
    inputs = assembly.make_inputs(run, fields=image_fields(1000))
    teacher = run.objective.target.bind(run.model, inputs)
    params = jax.eval_shape(lambda: teacher.init(jax.random.key(0)))
    millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    assert millions == pytest.approx(PUBLISHED[name], abs=0.01)
    assert teacher.weights == f'teachers/{name}' and teacher.model.dtype == 'bfloat16'


def test_no_name_is_left_out():
    sys.path.insert(0, str(CONFIGS))
    try:
        from _teachers import TEACHERS
    finally:
        sys.path.pop(0)
    assert set(TEACHERS) == set(PUBLISHED)
