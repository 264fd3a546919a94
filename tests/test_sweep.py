"""`python -m mim_jax.sweep`: the runs it plans, what it reads back, the table it prints."""

import json
import statistics
from pathlib import Path

import jax
import pytest

from mim_jax import config as configs
from mim_jax import experiment, fingerprints, sweep, work_directory
from mim_jax.weights import native

CONFIGS = Path(__file__).parent.parent / 'configs'

BASE = """
from mim_jax.experiment import default_config


def get_config():
    config = default_config('mae')
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=32, num_test=16)
    config.model.update(patch_size=(8, 8), width=8, depth=1, heads=2)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.train.total_steps = 2
    config.log.update(tensorboard=False, progress=False, num_pictures=1)
    return config
"""

TABLE = """
BASE = {base!r}
ROWS = {{
    'a quarter': {{'objective.masking.ratio': 0.25}},
    'half': {{'objective.masking.ratio': 0.5}},
}}
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    path = tmp_path / 'masks.py'
    path.write_text(TABLE.format(base=str(tmp_path / 'base.py')))
    return path


def plan(*arguments):
    return sweep.plan(*sweep.parse([str(argument) for argument in arguments]))


def test_every_row_with_every_seed_and_the_fields_of_the_command_line_last(table):
    runs = plan(f'--table={table}', '--seeds=2', '--out=o', '--config.model.depth=2')
    assert [(run.name, run.seed) for run in runs] == [
        ('a quarter', 0),
        ('half', 0),
        ('a quarter', 1),
        ('half', 1),
    ]
    assert runs[2].command == [
        '-m',
        'mim_jax.main',
        f'--config={table.parent / "base.py"}',
        '--workdir=o/a_quarter/seed1',
        '--config.seed=1',
        '--config.objective.masking.ratio=0.25',
        '--config.model.depth=2',
    ]
    assert all(run.total_steps == 2 for run in runs)


def test_a_mistake_in_the_last_row_shows_before_the_first_run(table, capsys):
    table.write_text(table.read_text().replace("ratio': 0.5", "ration': 0.5"))
    assert sweep.main([f'--table={table}', f'--out={table.parent / "out"}']) == 2
    assert 'row "half"' in (said := capsys.readouterr().err) and 'did you mean ratio?' in said
    assert not (table.parent / 'out').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('ROWS = {}', 'must set BASE'),
        ('BASE = (', 'cannot be run: SyntaxError'),
        ('BASE = "x.py"\nROWS = {"a": ["x"]}', 'must set BASE'),
        ('BASE = "x.py"\nROWS = {"a b": {}, "a_b": {}}', 'names too much alike'),
    ],
)
def test_a_table_that_is_none(text, message, table, capsys):
    table.write_text(text)
    assert sweep.main([f'--table={table}']) == 2
    assert message in capsys.readouterr().err
    assert sweep.main([f'--table={table}.py']) == 2
    assert 'no such file' in capsys.readouterr().err


def write_metrics(run, *lines):
    work_directory.claim(run.workdir, run.experiment)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (run.workdir / 'metrics.jsonl').write_text(text)


def test_the_table_has_mean_and_sample_deviation_of_what_is_finished(table, tmp_path):
    runs = plan(f'--table={table}', '--seeds=3', f'--out={tmp_path / "out"}')
    values = {0: 0.25, 2: 0.5, 4: 0.375}  # places of 'a quarter'
    for place, value in values.items():
        write_metrics(
            runs[place], {'step': 1, 'm': 0.9}, {'step': 2, 'loss': 1}, {'step': 2, 'm': value}
        )
    write_metrics(runs[1], {'step': 1, 'm': 0.9})  # stopped half way
    lines = sweep.table(runs, 'm').splitlines()
    spread = statistics.stdev(values.values())
    assert lines[2] == f'| a quarter | 0.3750 ± {spread:.4f} | 0.2500 | 0.5000 | 0.3750 |'
    assert lines[3] == '| half | nan |  |  |  |'
    assert sweep.result(runs[1], 'm') is None


@pytest.mark.slow
def test_a_sweep_runs_and_a_second_start_has_nothing_to_do(table, capfd, monkeypatch):
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    lines = table.read_text().splitlines()
    table.write_text('\n'.join(line for line in lines if 'a quarter' not in line))
    out = table.parent / 'out'
    arguments = [f'--table={table}', '--seeds=1', f'--out={out}', '--metric=train/loss']
    assert sweep.main(arguments) == 0
    text = (out / 'table.md').read_text()
    lines = (out / 'half' / 'seed0' / 'metrics.jsonl').read_text().splitlines()
    last = [v for v in map(json.loads, lines) if v['step'] == 2 and 'train/loss' in v]
    assert f'| half | {last[-1]["train/loss"]:.4f} |' in text
    capfd.readouterr()
    assert sweep.main(arguments) == 0
    assert capfd.readouterr().out == text
    assert sweep.main([*arguments[:-1], '--metric=eval/x/y']) == 2
    assert 'ended without eval/x/y' in capfd.readouterr().err


def test_results_of_another_config_are_not_taken_for_this_ones(table, tmp_path, capsys):
    arguments = [f'--table={table}', '--seeds=1', f'--out={tmp_path / "out"}', '--metric=m']
    for run in plan(*arguments):
        write_metrics(run, {'step': 2, 'm': 0.5})
    assert sweep.main(arguments) == 0
    capsys.readouterr()
    assert sweep.main([*arguments, '--config.optimizer.learning_rate=123.0']) == 2
    assert 'holds a run of another config (optimizer.learning_rate' in capsys.readouterr().err


def test_results_from_other_weights_are_not_taken_for_these_ones(table, tmp_path, capsys):
    config = configs.load(str(table.parent / 'base.py'))
    model = experiment.from_config(config).model
    struct = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    for seed, name in enumerate(('one', 'other')):
        params = jax.device_get(model.init(jax.random.key(seed), struct)['params'])
        metadata = native.encoder_metadata(model)
        native.save(tmp_path / f'{name}.safetensors', params, metadata=metadata)
    arguments = [f'--table={table}', '--seeds=1', f'--out={tmp_path / "out"}', '--metric=m']
    one, other, moved, missing = (
        f'--config.init.weights={tmp_path / name}.safetensors'
        for name in ('one', 'other', 'moved', 'missing')
    )
    for run in plan(*arguments, one):
        write_metrics(run, {'step': 2, 'm': 0.5})
        fingerprints.record(run.workdir, run.fingerprints)
    assert sweep.main([*arguments, one]) == 0
    (tmp_path / 'moved.safetensors').write_bytes((tmp_path / 'one.safetensors').read_bytes())
    assert sweep.main([*arguments, moved]) == 0
    capsys.readouterr()
    assert sweep.main([*arguments, other]) == 2
    assert 'the weights of the init are not those' in capsys.readouterr().err
    assert sweep.main([*arguments, missing]) == 2
    said = capsys.readouterr().err
    assert 'row "a quarter"' in said and 'missing.safetensors does not exist' in said


def test_what_rows_set_cannot_be_set_for_all(table, capsys):
    assert sweep.main([f'--table={table}', '--config.objective.masking.ratio=0.9']) == 2
    assert 'is what row "a quarter"' in capsys.readouterr().err


@pytest.mark.parametrize('path', sorted((CONFIGS / 'ablations').glob('*.py')), ids=lambda p: p.stem)
def test_every_ablation_builds(path, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    assert sweep.main([f'--table={path}', '--seeds=1', '--dry_run']) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == len(set(commands)) == len(sweep.read_table(str(path))[1])
    assert all(command.startswith('python -m mim_jax.main --config=') for command in commands)
