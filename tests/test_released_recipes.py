"""The configs of DTM, BEiT v2 and ConMIM follow the released code where papers are silent; others
do not.

The facts are those of naver-ai/dtm and of microsoft/unilm, beit2: `no_weight_decay` names the class
token and the absolute positions, and whatever else has more than one dimension and is no bias is
decayed; tokens are drawn from a normal of 0.02 between -0.02 and 0.02; a loader drops the last,
partial batch of an epoch.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, config, experiment
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.models.initializers import cut_token
from mim_jax.program import Program
from mim_jax.sharding import path_name

CONFIGS = Path(__file__).parent.parent / 'configs'
# Which follow that code in tokens and decay, and which of them in epochs too: the ImageNet recipes.
FOLLOW = ['dtm', 'dtm:vitb', 'dtm:cifar10', 'dtm_vitb', 'dtm_vits', 'dtm_vitl', 'dtm_cifar10']
FOLLOW += ['beitv2', 'beitv2:vitb', 'beitv2:cifar10', 'conmim', 'conmim:vitb', 'conmim:cifar10']
FOLLOW += ['finetune', 'segmentation', 'transfer']
# Released codes of their own that cut tokens in the same way, and that decay tokens.
CUT = ['cae', 'caev2', 'data2vec']
DECAY = [*CUT, 'ijepa', 'dmtjepa', 'salt', 'salt_teacher', 'latentmim', 'moca']
COUNT = ['dtm', 'dtm:vitb', 'dtm_vitb', 'dtm_vits', 'dtm_vitl', 'beitv2', 'beitv2:vitb']
COUNT += ['conmim', 'conmim:vitb', 'finetune']
COUNT += ['cae', 'caev2', 'data2vec', 'de3', 'ijepa', 'dmtjepa']
SIZED = ('dtm', 'beitv2', 'byol', 'conmim', 'hpm', 'lut', 'mae', 'mae_clip', 'mfm', 'simmim')
SIZED += ('vqkd',)

# Every parameter: whether it is decayed, and in brackets what it is there, without the depth.
BLOCKS = {
    'norm1/scale': False,  # [D]
    'norm1/bias': False,
    'attention/qkv/kernel': True,  # [3 D, D]
    'attention/qkv/bias': False,  # q_bias, v_bias [D]
    'attention/out/kernel': True,  # [D, D]
    'attention/out/bias': False,
    'layer_scale1': False,  # gamma_1 [D]
    'norm2/scale': False,
    'norm2/bias': False,
    'mlp/fc1/kernel': True,
    'mlp/fc1/bias': False,
    'mlp/fc2/kernel': True,
    'mlp/fc2/bias': False,
    'layer_scale2': False,
}
TABLE = {'relative_position/patches': True, 'relative_position/class_token': True}  # [732, heads]
SHARED = {
    'encoder/patch_embed/kernel': True,  # [D, 3, 16, 16]
    'encoder/patch_embed/bias': False,
    'encoder/class_token': False,  # in no_weight_decay
    'encoder/mask_token': True,  # [1, 1, D]
    **{f'encoder/{name}': value for name, value in TABLE.items()},
    **{f'encoder/blocks/{name}': value for name, value in BLOCKS.items()},
    'encoder/final_norm/scale': False,
    'encoder/final_norm/bias': False,
    'head/linear/kernel': True,
    'head/linear/bias': False,
}
DECAYED = {
    'dtm_vitb': SHARED | {f'encoder/blocks/{name}': value for name, value in TABLE.items()},
    'beitv2': SHARED | {f'branch/blocks/{name}': value for name, value in BLOCKS.items()},
}


def load(spec):
    name, colon, size = spec.partition(':')
    return experiment.from_config(config.load(f'{CONFIGS / name}.py{colon}{size}'))


def params_of(run):
    """The bound objective and the shapes of its parameters."""
    objective = assembly.make_objective(run, fields=image_fields(1000))
    images = assembly.batch_struct(run, objective)['images']
    return objective, jax.eval_shape(objective.init, jax.random.key(0), images)['params']


def by_name(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize('name', DECAYED)
def test_what_is_decayed_per_parameter(name):
    run = load(name)
    objective, params = params_of(run)
    found = objective.weight_decayed(params, also=run.optimizer.decay_also)
    assert by_name(found) == DECAYED[name]


def test_tokens_and_tables_are_decayed_by_name(tiny_config):
    settings = tiny_config('simmim')
    settings.model.update(position='learned', num_registers=2, relative_position='both')
    objective, params = params_of(experiment.from_config(settings))
    names = {
        'class_token': {'class_token'},
        'mask_token': {'mask_token'},
        'registers': {'registers'},
        'position': {'position/patches', 'position/class_token'},
        'relative_position': {*TABLE, *(f'blocks/{name}' for name in TABLE)},
    }
    plain = by_name(objective.weight_decayed(params))
    for also, expected in names.items():
        found = by_name(objective.weight_decayed(params, also=(also,)))
        changed = {name for name in found if found[name] != plain[name]}
        assert changed == {f'encoder/{name}' for name in expected}
        assert all(found[name] for name in changed)
    settings.optimizer.decay_also = ('mask',)
    with pytest.raises(UserError, match="decay_also: 'mask' is none of class_token, mask_token"):
        experiment.from_config(settings)


@pytest.mark.slow
def test_the_step_decays_them(tiny_config):
    """Without a gradient AdamW moves what is decayed, and that alone, by the rate times the decay
    times itself: each block of a stacked table as well.
    """
    settings = tiny_config('dtm')
    settings.model.update(relative_position='both')
    settings.optimizer.update(
        learning_rate=0.5, scaling='none', weight_decay=0.1, decay_also=('relative_position',)
    )
    settings.mesh.data = 1
    program = Program.make(
        experiment.from_config(settings), epoch_examples=64, fields=image_fields(10)
    )
    shapes = program.abstract_state.variables['params']
    params = jax.tree.map(lambda s: jnp.full(s.shape, 2.0), shapes)
    optimizer = program.step.optimizer
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    decayed = by_name(program.objective.weight_decayed(shapes, also=('relative_position',)))
    assert decayed['encoder/blocks/relative_position/patches']
    for name, update in by_name(updates).items():
        np.testing.assert_allclose(update, -0.1 if decayed[name] else 0.0, err_msg=name)


def test_tokens_start_as_a_normal_cut_at_one_deviation():
    tokens = np.asarray(cut_token(jax.random.key(0), (4000, 8)))
    assert np.abs(tokens).max() <= 0.02
    # A standard normal cut at one deviation has variance 1 - 2 phi(1) / (2 Phi(1) - 1).
    np.testing.assert_allclose(tokens.std(), 0.02 * np.sqrt(0.29113), rtol=0.02)


def test_every_token_and_learned_position_is_cut(tiny_config):
    for choice in ('normal', 'cut'):
        settings = tiny_config('simmim')
        settings.model.update(
            width=256, position='learned', num_registers=2, token_initialization=choice
        )
        objective = assembly.make_objective(
            experiment.from_config(settings), fields=image_fields(10)
        )
        encoder = objective.encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
        drawn = [encoder[name] for name in ('class_token', 'mask_token', 'registers')]
        drawn += jax.tree.leaves(encoder['position'])
        assert len(drawn) == 5
        for values in drawn:
            assert (np.abs(values).max() <= 0.02) == (choice == 'cut')


def test_an_epoch_of_imagenet_is_625_steps():
    clock = assembly.make_clock(load('dtm_vitb'), 1_281_167)
    assert clock.total_steps == 300 * 625
    assert clock.steps(load('dtm_vitb').optimizer, 'warmup', path='optimizer') == 6250
    assert assembly.make_clock(load('beitv2'), 1_281_167).total_steps == 300 * 625


def specs():
    """Every config at every size."""
    for path in sorted(CONFIGS.glob('[!_]*.py')):
        yield path.stem
        if path.stem in SIZED:
            yield from (f'{path.stem}:{size}' for size in ('vitb', 'cifar10', 'embedded'))


def test_no_other_config_follows_that_code():
    seen = {spec: load(spec) for spec in specs()}
    assert len(seen) > 40
    cut = {spec for spec, run in seen.items() if run.model.token_initialization == 'cut'}
    decayed = {spec for spec, run in seen.items() if run.optimizer.decay_also}
    assert cut == {*FOLLOW, *CUT}
    assert decayed == {*FOLLOW, *DECAY}
    assert {spec for spec, run in seen.items() if run.train.whole_batches} == set(COUNT)
