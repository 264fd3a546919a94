"""The config section `init`: runs that start from weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import mim_jax
from mim_jax import checkpoints, experiment, fingerprints, main, warm_start
from mim_jax.data import image_fields
from mim_jax.errors import UserError
from mim_jax.models.vit import ViT
from mim_jax.program import Program
from mim_jax.warm_start import InitConfig
from mim_jax.weights import native
from tests.conftest import TEACHER

CONFIG = """
'''A run of seconds: a method with relative positions, and what it is fine-tuned by.'''
from mim_jax.experiment import default_config

def get_config(method='simmim'):
    config = default_config(method)
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=32, num_test=16)
    config.model.update(
        patch_size=(8, 8), width=16, depth=2, heads=2, position='learned',
        relative_position='shared', mask_token=True,
    )
    if method == 'classification':
        config.model.update(relative_position='per_block', mask_token=False, final_norm=False)
    config.mesh.data = 1
    config.train.total_steps = 2
    config.eval.evaluators = ()
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=1)
    return config
"""


def call(folder, workdir, *arguments, method='simmim'):
    return main.main(
        [f'--config={folder / "tiny.py"}:{method}', f'--workdir={folder / workdir}', *arguments]
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a pre-trained run `pre` that averages its parameters, and one that does not."""
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'tiny.py').write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MIM_JAX_NUM_PROCESSES', '1')  # JAX is running here already
        average = '--config.train.ema.decay=0.5'
        assert call(folder, 'pre', average, '--config.checkpoint.every_steps=1') == 0
        assert call(folder, 'plain', '--config.train.total_steps=1') == 0
    return folder


@pytest.fixture
def folder(trained, monkeypatch):
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    return trained


def program_of(folder, method='classification', **changes):
    namespace = {}
    exec((folder / 'tiny.py').read_text(), namespace)
    config = namespace['get_config'](method)
    for path, value in changes.items():
        section, name = path.split('__')
        config[section][name] = value
    return Program.make(experiment.from_config(config), epoch_examples=32, fields=image_fields(10))


def started(folder, init, method='classification', **changes):
    """(program, its start, its state before the first step)."""
    program = program_of(folder, method, **changes)
    program = dataclasses.replace(program, run=dataclasses.replace(program.run, init=init))
    start = program.start()
    return program, start, program.init(program.pretrained(), start.params)


def features(program, params, images):
    return jax.jit(program.objective.features)({'params': params}, images / np.float32(255))


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize('average', [None, True, False])
def test_features_are_those_of_the_run_it_starts_from(folder, average):
    init = InitConfig(weights=str(folder / 'pre'), average=average)
    program, start, state = started(folder, init)
    params = state.variables['params']
    # The source's final norm has no place here: its last block is compared.
    source = mim_jax.load(folder / 'pre', average=average)
    normalised = program.objective.inputs.normalize(IMAGES / np.float32(255))
    encoder = program.objective.encoder
    mine = jax.jit(encoder.apply, static_argnames='layers')(
        {'params': params['encoder']}, normalised, layers=(1, 2)
    )
    theirs = source(IMAGES, layers=(1, 2))
    for block in (1, 2):
        np.testing.assert_allclose(
            mine.layers[block].tokens, theirs.layers[block].tokens, rtol=1e-5, atol=1e-5
        )
    other = mim_jax.load(folder / 'pre', average=average is False)(IMAGES).tokens
    assert np.abs(theirs.tokens - other).max() > 1e-4  # the choice makes a difference
    said = '\n'.join(start.lines)
    assert 'step 2' in said and ('the average of its encoder' in said) == (average is not False)
    assert "relative_position/patches added to every block's own" in said
    assert 'encoder, left out: final_norm/bias, final_norm/scale, mask_token' in said
    assert 'left fresh: head' in said


def test_parameters_are_born_sharded_and_the_average_starts_from_them(folder):
    init = InitConfig(weights=str(folder / 'pre'))
    mesh = dict(mesh__data=2, mesh__fsdp=4, mesh__min_shard_size=16)
    _, _, alone = started(folder, init)
    program, start, state = started(folder, init, train__ema={'decay': 0.9}, **mesh)
    place = program.abstract_state.variables
    for name in ('params', 'ema'):
        values = state.variables[name]
        jax.tree.map(lambda x, s: None if x.sharding == s.sharding else 1 / 0, values, place[name])
        jax.tree.map(np.testing.assert_array_equal, values, alone.variables['params'])
    kernel = state.variables['params']['encoder']['blocks']['mlp']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    np.testing.assert_array_equal(kernel, start.params['encoder']['blocks']['mlp']['fc1']['kernel'])
    # One buffer may not serve twice: the step donates them both.
    assert kernel is not state.variables['ema']['encoder']['blocks']['mlp']['fc1']['kernel']


def test_what_is_not_taken_is_as_in_a_run_without_init(folder):
    program, _, state = started(folder, InitConfig(weights=str(folder / 'pre')))
    fresh = program.init(program.pretrained())
    head = jax.tree.map(np.array_equal, state.variables['params']['head'],
                        fresh.variables['params']['head'])  # fmt: skip
    assert all(jax.tree.leaves(head))
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)


def test_another_grid(folder):
    init = InitConfig(weights=str(folder / 'pre'))
    program, start, state = started(folder, init, data__image_size=(48, 32))
    assert state.variables['params']['encoder']['position']['patches'].shape == (6, 4, 16)
    assert 'position/patches from the grid 4x4 to 6x4 (bicubic)' in '\n'.join(start.lines)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3), np.uint8)
    source = mim_jax.load(folder / 'pre')(images, layers=(2,), resize='none')
    mine = features(program, state.variables['params'], images)  # without a final norm
    np.testing.assert_allclose(mine.tokens, source.layers[2].tokens, rtol=1e-4, atol=1e-5)


def test_other_parts_of_a_run_of_the_same_method(folder):
    pre = str(folder / 'pre')
    init = InitConfig(weights=pre, parts=('encoder', 'head'), step=1, average=False)
    _, start, state = started(folder, init, method='simmim')
    wanted, _ = checkpoints.restore_variables(pre, step=1)
    jax.tree.map(np.testing.assert_array_equal, state.variables['params'], wanted['params'])
    assert 'head: taken whole' in '\n'.join(start.lines)
    with pytest.raises(UserError, match='its head does not fit the model'):
        started(folder, init)  # a classifier's head
    with pytest.raises(UserError, match="'decoder', but the parameters of this run have the parts"):
        started(folder, InitConfig(weights=pre, parts=('decoder',)))


def test_a_weight_file_and_its_folder(folder, tmp_path):
    model = program_of(folder).run.model
    struct = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    params = jax.device_get(model.init(jax.random.key(9), struct)['params'])
    metadata = native.encoder_metadata(model, mean=json.dumps([0.1, 0.2, 0.3]))
    native.save(tmp_path / 'encoder.safetensors', params, metadata=metadata)
    for path in (tmp_path, tmp_path / 'encoder.safetensors'):
        _, start, state = started(folder, InitConfig(weights=str(path)))
        jax.tree.map(np.testing.assert_array_equal, state.variables['params']['encoder'], params)
        assert 'made for images of mean (0.1, 0.2, 0.3), here' in start.lines[-1]
    with pytest.raises(UserError, match='has an encoder alone; take head of config.init.parts'):
        started(folder, InitConfig(weights=str(tmp_path), parts=('encoder', 'head')))
    with pytest.raises(UserError, match='only a work directory has steps and averages'):
        started(folder, InitConfig(weights=str(tmp_path), average=True))


@pytest.mark.parametrize('method', ['dtm', 'mae', 'byol', 'hpm', 'classification'])
def test_every_method_may_start_so(tiny_config, tmp_path, method):
    config = tiny_config(method)
    config.model.mask_token = method == 'dtm'
    config.mesh.data = 1
    if method in ('byol', 'hpm'):
        config.train.ema.decay = 0.9
    struct = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    run = experiment.from_config(config)
    model = run.model
    params = jax.device_get(model.init(jax.random.key(9), struct)['params'])
    native.save(tmp_path / 'w', params, metadata=native.encoder_metadata(model))
    config.init.weights = str(tmp_path / 'w')
    program = Program.make(
        experiment.from_config(config), epoch_examples=64, fields=image_fields(10)
    )
    state = program.init(program.pretrained(), program.start().params)
    for name in {'params', 'ema'} & state.variables.keys():
        found = state.variables[name]['encoder']
        jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.slow
def test_the_command_says_what_it_took_and_resumes_without_it(folder, tmp_path, capfd):
    shutil.copytree(folder / 'pre', tmp_path / 'source')
    init = f'--config.init.weights={tmp_path / "source"}'
    steps = ['--config.checkpoint.every_steps=1', '--config.train.total_steps=2']
    assert call(folder, tmp_path / 'tuned', init, *steps, method='classification') == 0
    said = capfd.readouterr().out
    assert f'config.init.weights: {tmp_path / "source"}, step 2' in said
    assert 'encoder, left out:' in said and 'left fresh: head' in said
    recorded = json.loads((tmp_path / 'tuned' / fingerprints.FILE).read_text())
    assert recorded.keys() == {'init'}
    shutil.rmtree(tmp_path / 'source')
    # As if it had been killed after its first step.
    shutil.rmtree(tmp_path / 'tuned' / 'checkpoints' / '2')
    assert call(folder, tmp_path / 'tuned', init, *steps, method='classification') == 0
    said = capfd.readouterr().out
    assert 'resuming after step 1' in said and 'config.init.weights:' not in said
    # What it began with is part of the run, though it may lie elsewhere now.
    moved = '--config.init.weights=elsewhere'
    assert call(folder, tmp_path / 'tuned', moved, *steps, method='classification') == 0
    other = '--config.init.average=false'
    assert call(folder, tmp_path / 'tuned', init, other, *steps, method='classification') == 2
    assert 'init.average: None -> False' in capfd.readouterr().err


def test_mistakes_are_one_sentence_and_leave_nothing(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pre, plain = folder / 'pre', folder / 'plain'
    native.save(Path('text'), {'blocks': {'x': np.zeros(2)}}, metadata={})
    Path('empty').mkdir()
    for arguments, said in (
        (['weights=gone'], 'gone does not exist'),
        (['weights=text'], 'text holds no encoder'),
        (['weights=empty'], 'empty holds no encoder'),
        ([f'weights={folder / "tiny.py"}'], 'cannot be read as safetensors'),
        ([f'weights={pre}', 'step=7'], 'no checkpoint of step 7'),
        ([f'weights={plain}', 'average=true'], 'keeps no average of its encoder'),
        (['step=1'], 'step = 1 needs weights'),
        ([f'weights={pre}', 'parts=()'], 'parts names nothing'),
        ([f'weights={pre}', '--config.model.width=32'], 'width is 16 there, 32 in the config'),
        ([f'weights={pre}', '--config.model.depth=3'], 'depth is 2 there, 3 in the config'),
        ([f'weights={pre}', '--config.model.heads=4'], 'heads is 2 there, 4 in the config'),
        ([f'weights={pre}', '--config.model.patch_size=(4,4)'], 'patch_size is'),
        ([f'weights={pre}', '--config.data.channels=1', '--config.data.mean=(0.5,)',
          '--config.data.std=(0.5,)'], 'channels'),
    ):  # fmt: skip
        flags = [a if a.startswith('--') else f'--config.init.{a}' for a in arguments]
        capfd.readouterr()
        assert call(folder, tmp_path / 'work', *flags, method='classification') == 2, arguments
        lines = capfd.readouterr().err.splitlines()
        lines = [line for line in lines if line.startswith('error: ')]
        assert len(lines) == 1 and 'config.init' in lines[0] and said in lines[0], lines
        assert not (tmp_path / 'work').exists()


def test_nothing_is_read_without_the_section():
    assert warm_start.load(InitConfig(), model=ViT(**TEACHER), params={}, inputs=None) is None
