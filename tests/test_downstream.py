"""`python -m mim_jax.downstream`: its plan, what it reads back, its table; and all of it once."""

import json
import shutil
import statistics

import pytest

from mim_jax import downstream, planned, work_directory
from mim_jax.errors import UserError

CONFIG = """
from mim_jax.experiment import default_config


def get_config():
    config = default_config({objective!r})
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=32, num_test=16)
    config.model.update(patch_size=(8, 8), width=8, depth=1, heads=2)
    config.train.total_steps = 2
    config.mesh.data = 1
    config.eval.update(evaluators={evaluators!r}, every_percent=50.0)
    config.log.update(tensorboard=False, progress=False, num_pictures=1)
    return config
"""


@pytest.fixture
def flags(tmp_path):
    """Of a study of two steps per run."""
    for name, objective, evaluators in (
        ('before', 'mae', ()),
        ('task', 'classification', ('accuracy',)),
        ('other', 'classification', ('knn',)),
    ):
        text = CONFIG.format(objective=objective, evaluators=evaluators)
        (tmp_path / f'{name}.py').write_text(text)
    return [
        f'--pretraining={tmp_path / "before.py"}',
        f'--tasks={tmp_path / "task.py"},{tmp_path / "other.py"}',
        f'--out={tmp_path / "out"}',
        '--evaluators=knn,fewshot',
        '--pretraining.objective.decoder.width=8',
        '--pretraining.objective.decoder.depth=1',
        '--pretraining.objective.decoder.heads=2',
        '--pretraining.eval.fewshot.shots=(1,)',
    ]


def plan(*flags):
    return downstream.make_plan(*downstream.parse([*map(str, flags)]))


def test_every_task_with_and_without_the_pretrained_encoder_of_its_seed(flags, tmp_path):
    made = plan(*flags, '--seeds=2', '--config.train.total_steps=3', '--task.model.depth=1')
    folders = [str(run.workdir.relative_to(tmp_path / 'out')) for run in made.runs]
    one = ['pretraining', 'task/pretrained', 'task/scratch', 'other/pretrained', 'other/scratch']
    assert folders == [f'{name}/seed{seed}' for seed in (0, 1) for name in one]
    assert all(run.total_steps == 3 for run in made.runs)
    pretrained, scratch = made.tasks['task'][1]
    weights = f'--config.init.weights={tmp_path / "out" / "pretraining" / "seed1"}'
    extra = [text for text in pretrained.command if text not in scratch.command]
    assert extra == [f'--workdir={pretrained.workdir}', weights]
    assert '--config.init.weights=none' in scratch.command
    assert '--config.model.depth=1' in scratch.command and '--config.seed=1' in scratch.command
    assert not any('depth' in text for text in made.tasks['other'][0][0].command)
    evaluated = made.pretraining[0].experiment.eval
    assert evaluated.evaluators == ('knn', 'fewshot') and evaluated.every_percent is None
    assert made.tasks['task'][0][0].experiment.eval.every_percent == 50.0


def write_metrics(run, *lines):
    work_directory.claim(run.workdir, run.experiment)
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (run.workdir / 'metrics.jsonl').write_text(text)


def test_the_table_has_both_sides_and_the_difference_seed_by_seed(flags, tmp_path):
    made = plan(*flags, '--seeds=2')
    before, after = (0.1, 0.2), (0.4, 0.45)
    for seed in (0, 1):
        write_metrics(
            made.pretraining[seed],
            {'step': 0, 'eval/knn/top1': before[seed], 'eval/knn/top1_k10': 0.3},
            {'step': 0, 'eval/fewshot/top1_5shot': 0.2, 'eval/fewshot/top1_5shot_ci95': 0.01},
            {'step': 2, 'train/loss': 1.0},
            {'step': 2, 'eval/knn/top1': after[seed], 'eval/fewshot/top1_5shot': 0.3},
        )
        for name, metric in ('task', 'accuracy/top1'), ('other', 'knn/top1'):
            pretrained, scratch = made.tasks[name][seed]
            write_metrics(scratch, {'step': 2, f'eval/{metric}': 0.5})
            write_metrics(pretrained, {'step': 2, f'eval/{metric}': 0.625})
    found = downstream.compare(made)
    assert list(found) == [
        'frozen features: knn/top1',
        'frozen features: fewshot/top1_5shot',
        'task: accuracy/top1',
        'other: knn/top1',
    ]
    lines = downstream.table(found).splitlines()
    deviations = [100 * statistics.stdev(v) for v in (before, after, (0.3, 0.25))]
    cells = [
        f'{mean} ± {deviation:.1f}'
        for mean, deviation in zip(('15.0', '42.5', '+27.5'), deviations, strict=True)
    ]
    assert lines[2] == f'| frozen features: knn/top1 | {" | ".join(cells)} |'
    assert lines[4] == '| task: accuracy/top1 | 50.0 ± 0.0 | 62.5 ± 0.0 | +12.5 ± 0.0 |'


@pytest.mark.parametrize(
    ('flag', 'sentence'),
    [
        ('--task.model.deep=3', 'did you mean depth?'),
        ('--finetune.model.depth=3', 'fields of the runs are set by --config.FIELD=VALUE'),
        ('--task.model.depth', 'fields of the runs are set by'),
        ('--config.seed=3', 'say --seeds=N'),
    ],
)
def test_mistakes_are_told_before_the_first_run(flags, tmp_path, capsys, flag, sentence):
    assert downstream.main([*flags, flag]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_results_are_those_of_the_evaluators_that_are_asked_for(flags, tmp_path):
    (run,) = plan(*flags).pretraining
    assert not planned.finished(run)
    write_metrics(run, {'step': 2, 'eval/knn/top1': 0.5})
    assert not planned.finished(run)  # there is no checkpoint
    (run.workdir / 'checkpoints' / '2').mkdir(parents=True)
    with pytest.raises(UserError, match='finished run without figures of fewshot'):
        planned.finished(run)
    write_metrics(run, {'step': 2, 'eval/knn/top1': 0.5, 'eval/fewshot/top1_1shot': 0.5})
    assert planned.finished(run)


def test_two_tasks_of_one_name_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        plan(*[f.replace('other.py', 'task.py') for f in flags])
    assert 'two stages would have one name' in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_runs_and_a_second_start_has_nothing_to_do(flags, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    assert downstream.main(flags) == 0
    text = (tmp_path / 'out' / 'results.md').read_text()
    assert len(text.splitlines()) == 6 and '| task: accuracy/top1 |' in text
    said = capfd.readouterr().out
    assert said.endswith(text) and 'config.init.weights' in said
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert found['frozen features: knn/top1'].keys() == {'without', 'with'}
    assert downstream.main(flags) == 0
    assert capfd.readouterr().out == f'\n{text}'
    # The task started from weights that are others now: its result is not taken.
    shutil.rmtree(tmp_path / 'out' / 'pretraining')
    again = ['--pretraining.objective.target.normalize=false']
    assert downstream.main([*flags, *again]) == 2
    assert 'weights of the init are not those' in capfd.readouterr().err
