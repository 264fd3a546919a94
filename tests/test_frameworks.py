"""The configs of the frameworks that morphing joins, each trained for two steps."""

import json
import math
from pathlib import Path

import jax
import pytest

from mim_jax import assembly, config, experiment, main, restoring
from mim_jax.data import image_fields

CONFIGS = Path(__file__).parent.parent / 'configs'
SHORT = [
    '--config.train.total_steps=2',
    '--config.data.batch_size=16',
    '--config.data.source.num_train=64',
    '--config.data.source.num_test=32',
    '--config.eval.evaluators=()',
    '--config.mesh.data=1',
    '--config.log.every_steps=1',
    '--config.log.num_pictures=1',
    '--config.log.tensorboard=false',
    '--config.log.progress=false',
]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Function (config file, overrides) -> work directory, metrics by step, of two steps."""
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')

    def run(name, *overrides):
        workdir = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        arguments = [f'--config={CONFIGS / name}', f'--workdir={workdir}', *SHORT]
        assert main.main([*arguments, *overrides]) == 0
        lines = (workdir / 'metrics.jsonl').read_text().splitlines()
        values = {}
        for line in map(json.loads, lines):
            values.setdefault(line.pop('step'), {}).update(line)
        assert math.isfinite(values[2]['train/loss'])
        return workdir, values

    return run


@pytest.mark.slow
def test_mae_with_a_teachers_features(train):
    workdir, _ = train('mae_clip.py:embedded')
    assert (workdir / 'pictures' / 'groups_000002.png').is_file()


@pytest.mark.slow
def test_morphing_is_what_the_override_leaves_out(train):
    _, morphed = train('byol.py:embedded')
    _, without = train('byol.py:embedded', '--config.objective.morphing.schedule=none')
    # Before the first update only the morphing differs: what pools all tokens does not see it.
    assert morphed[1]['train/token_loss'] != without[1]['train/token_loss']
    same = morphed[1]['train/pooled_loss'], without[1]['train/pooled_loss']
    assert same[0] == pytest.approx(same[1], rel=1e-6)


@pytest.mark.slow
def test_a_tokenizer_and_beitv2_on_its_codes(train):
    tokenizer, values = train('vqkd.py:embedded')
    assert values[2]['train/restoration'] < 2 and values[2]['train/codes_used'] <= 1
    weights = f'--config.objective.target.weights={tokenizer}'
    workdir, _ = train('beitv2.py:embedded', weights)
    _, variables, step = restoring.restore_run(workdir)
    assert step == 2 and variables['teacher']['codes'].shape == (64, 8)


@pytest.mark.slow
def test_another_tokenizer_than_the_config_says_is_told(train, capsys):
    tokenizer, _ = train('vqkd.py:embedded')
    arguments = [
        f'--config={CONFIGS / "beitv2.py"}:embedded',
        f'--workdir={tokenizer.parent / "other"}',
        f'--config.objective.target.weights={tokenizer}',
    ]
    assert main.main([*arguments, '--config.objective.target.num_codes=32']) == 2
    said = capsys.readouterr().err
    assert 'codes (64, 8) instead of (32, 8)' in said
    assert main.main([*arguments, '--config.objective.target.mean=0,0,0']) == 2
    assert 'config.objective.target.mean' in capsys.readouterr().err
    assert main.main([*arguments, '--config.objective.target.model.activation=gelu_tanh']) == 2
    assert "activation is 'gelu' there, 'gelu_tanh'" in capsys.readouterr().err
    assert not (tokenizer.parent / 'other').exists()


@pytest.mark.parametrize('scale', ['vitb', 'cifar10'])
def test_mae_with_a_teachers_features_builds_at_every_size(scale):
    run = experiment.from_config(config.load(f'{CONFIGS / "mae_clip"}.py:{scale}'))
    objective = assembly.make_objective(run, fields=image_fields(10))
    images = assembly.batch_struct(run, objective)['images']
    shapes = jax.eval_shape(objective.init, jax.random.key(0), images)
    assert shapes['params']['encoder']['blocks']['norm1']['scale'].shape[0] == run.model.depth
