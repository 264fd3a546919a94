import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from mim_jax import logs

QUIET = logs.LogConfig(tensorboard=False, progress=False)


def make_logger(workdir, *, config=QUIET, is_main=True, resume_step=None):
    return logs.Logger(workdir, config, total_steps=100, is_main=is_main, resume_step=resume_step)


def lines_of(workdir):
    return (workdir / 'metrics.jsonl').read_text().splitlines()


def test_one_json_object_per_line(tmp_path):
    logger = make_logger(tmp_path)
    logger.scalars(1, {'train/loss': np.float32(0.5), 'train/lr': 1e-3})
    logger.scalars(1, {'eval/knn/top1': 0.25})
    logger.close()
    assert [json.loads(line) for line in lines_of(tmp_path)] == [
        {'step': 1, 'train/loss': 0.5, 'train/lr': 1e-3},
        {'step': 1, 'eval/knn/top1': 0.25},
    ]


def test_values_keep_every_bit(tmp_path):
    value = float(np.float32(1) / np.float32(3))
    logger = make_logger(tmp_path)
    logger.scalars(1, {'train/loss': value})
    logger.close()
    assert logs.read_metrics(tmp_path)[0]['train/loss'] == value


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_non_finite_values_are_valid_json(tmp_path, value):
    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    logger = make_logger(tmp_path)
    logger.scalars(1, {'train/loss': value})
    logger.close()
    (line,) = lines_of(tmp_path)
    assert json.loads(line, parse_constant=refuse) == {'step': 1, 'train/loss': None}


@pytest.mark.parametrize('where', ['tmp_path', 'store'])
def test_resume_reads_as_one_run(where, request):
    workdir = request.getfixturevalue(where)
    logger = make_logger(workdir)
    for step in (10, 20, 30):
        logger.scalars(step, {'train/loss': step / 100})
    logger.close()
    logger = make_logger(workdir, resume_step=20)
    logger.scalars(30, {'train/loss': 0.7})
    logger.close()
    assert [(r['step'], r['train/loss']) for r in logs.read_metrics(workdir)] == [
        (10, 0.1),
        (20, 0.2),
        (30, 0.7),
    ]
    superseded = (workdir / 'metrics.superseded.jsonl').read_text()
    assert json.loads(superseded) == {'step': 30, 'train/loss': 0.3}
    assert not list(workdir.glob('*.tmp'))


def test_what_a_checkpoint_follows_is_in_the_object_store(store):
    logger = make_logger(store, config=logs.LogConfig(progress=False))
    for step in (1, 2):
        logger.scalars(step, {'train/loss': step / 100})
        logger.sync()
        assert logs.read_metrics(store)[-1]['step'] == step
    (events,) = (store / 'tensorboard').iterdir()
    size = events.stat().st_size
    logger.scalars(3, {'train/loss': 0.3})
    logger.close()
    assert len(logs.read_metrics(store)) == 3 and events.stat().st_size > size


@pytest.mark.parametrize('tail', ['{"step": 20, "train/lo', '\xff', '{"step": 20}', '3\n', '\n'])
def test_half_written_last_line(tmp_path, tail):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 10, "train/loss": 1.0}\n' + tail)
    logger = make_logger(tmp_path, resume_step=20)
    logger.scalars(30, {'train/loss': 0.5})
    logger.close()
    records = [json.loads(line) for line in lines_of(tmp_path)]
    assert records[0] == {'step': 10, 'train/loss': 1.0}
    assert records[-1] == {'step': 30, 'train/loss': 0.5}
    assert len(records) == (3 if tail == '{"step": 20}' else 2)


@pytest.mark.parametrize(
    'line', ['{"step": "ten"}', '{"step": null}', '[10]', '\xff{', '{"loss": 1}']
)
def test_lines_that_cannot_be_read_are_kept_aside_and_told(tmp_path, line, capsys):
    whole = [f'{{"step": {step}, "train/loss": 1.0}}\n' for step in (10, 20)]
    (tmp_path / 'metrics.jsonl').write_text(f'{whole[0]}{line}\n{whole[1]}')
    make_logger(tmp_path, resume_step=20).close()
    assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(whole)
    assert (tmp_path / 'metrics.superseded.jsonl').read_text() == f'{line}\n'
    assert '1 lines of metrics.jsonl that come after step 20 or cannot be read' in _said(capsys)


def _said(capsys):
    found = capsys.readouterr()
    return found.out + found.err


def test_restart_from_nothing_keeps_the_old_lines_apart(tmp_path):
    for loss in (1.0, 2.0):
        logger = make_logger(tmp_path)
        logger.scalars(0, {'train/loss': loss})
        logger.close()
    assert logs.read_metrics(tmp_path) == [{'step': 0, 'train/loss': 2.0}]
    assert '1.0' in (tmp_path / 'metrics.superseded.jsonl').read_text()


def test_resume_without_later_lines_leaves_the_file_alone(tmp_path):
    logger = make_logger(tmp_path)
    logger.scalars(10, {'train/loss': 1.0})
    logger.close()
    before = (tmp_path / 'metrics.jsonl').stat()
    make_logger(tmp_path, resume_step=10).close()
    after = (tmp_path / 'metrics.jsonl').stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not (tmp_path / 'metrics.superseded.jsonl').exists()


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_lines_survive_a_kill(tmp_path):
    program = (
        'import os, signal, sys\n'
        'from mim_jax import logs\n'
        'config = logs.LogConfig(tensorboard=False, progress=False)\n'
        'logger = logs.Logger(sys.argv[1], config, total_steps=9, is_main=True)\n'
        'logger.scalars(1, {"train/loss": 1.0})\n'
        'os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    result = subprocess.run([sys.executable, '-c', program, str(tmp_path)], env=os.environ)
    assert result.returncode == -signal.SIGKILL
    assert logs.read_metrics(tmp_path) == [{'step': 1, 'train/loss': 1.0}]


def test_only_the_main_process_writes(tmp_path, capfd):
    logger = make_logger(tmp_path / 'run', config=logs.LogConfig(progress=True), is_main=False)
    logger.scalars(1, {'train/loss': 1.0})
    logger.pictures(1, {'groups': np.zeros((4, 4, 3), np.uint8)})
    logger.progress(2)
    logger.message('hello')
    logger.close()
    assert not (tmp_path / 'run').exists()
    assert capfd.readouterr() == ('', '')


def test_plain_line_on_a_pipe(tmp_path, capfd):
    logger = make_logger(tmp_path)
    logger.scalars(
        50,
        {
            'train/loss': 0.43211,
            'train/learning_rate': 0.00015,
            'speed/images_per_second': 812.3,
            'speed/step_seconds': 0.1576,
            'speed/wait_share': 0.021,
            'speed/mfu': 0.413,
            'speed/eta_seconds': 252.0,
        },
    )
    logger.close()
    out = capfd.readouterr().out
    assert out == 'step  50/100 (50%)  loss 0.4321  lr 0.00015  812 img/s  ETA 4m12s  wait 2%\n'


def test_the_bar_fits_80_columns_and_never_goes_back(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    monkeypatch.setenv('LINES', '24')
    config = logs.LogConfig(tensorboard=False, progress=True)
    logger = logs.Logger(tmp_path, config, total_steps=390_000, is_main=True, resume_step=300_000)
    speed = {'speed/images_per_second': 12_345.0, 'speed/eta_seconds': 43_000.0}
    many = {f'health/grad_norm/block_{i:02}': 0.1 for i in range(24)}
    for step in (300_050, 300_100):
        logger.progress(step + 2)  # two steps are under way when one is logged
        logger.scalars(step, {'train/loss': 0.43211, 'train/grad_norm': 0.2, **speed, **many})
        logger.scalars(step, {'eval/knn/top1': 0.5})
    logger.close()
    out, err = capfd.readouterr()
    assert out == ''
    lines = [line.rstrip() for line in re.split(r'[\r\n]', err) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    bars = [line for line in lines if '|' in line]
    assert bars[-1].startswith('step 300102/390000, loss 0.4321, 12345 img/s, ETA 11h56m |')
    steps = [int(re.match(r'step (\d+)/', bar).group(1)) for bar in bars]
    assert steps == sorted(steps) and steps[0] == 300_000
    assert [line for line in lines if 'top1' in line] == [
        f'step {step}/390000 (77%)  eval/knn/top1 0.5' for step in (300_050, 300_100)
    ]


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    logger = make_logger(tmp_path, config=logs.LogConfig(progress=False))
    logger.scalars(7, {'train/loss': 0.5})
    logger.pictures(7, {'groups': np.full((8, 12, 3), 200, np.uint8)})
    logger.close()
    (path,) = (tmp_path / 'tensorboard').iterdir()
    data, values = path.read_bytes(), {}
    while data:  # TFRecord framing: length (8), its checksum (4), bytes, their checksum (4)
        size = int.from_bytes(data[:8], 'little')
        for value in (event := Event.FromString(data[12 : 12 + size])).summary.value:
            values[value.tag] = (event.step, value)
        data = data[16 + size :]
    step, loss = values['train/loss']
    assert (step, loss.simple_value) == (7, 0.5)
    assert 'custom_scalars__config__' in values
    step, picture = values['pictures/groups']
    assert (step, picture.image.height, picture.image.width) == (7, 8, 12)


@pytest.mark.parametrize(
    'kind, peak',
    [
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5e', 197e12),
        ('TPU v5', 459e12),
        ('TPU v5p', 459e12),
        ('TPU v6 lite', 918e12),
        ('TPU7x', 1153.5e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA B200', 2250e12),
        ('NVIDIA L4', 121e12),
        ('NVIDIA L40S', 362e12),
        ('Tesla V100-SXM2-16GB', 125e12),
        ('cpu', None),
        ('NVIDIA GeForce RTX 2060', None),
    ],
)
def test_peak_flops(kind, peak):
    assert logs.peak_flops(kind) == peak


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_every_chart_of_the_layout_finds_its_curves():
    names = ['train/loss', 'train/learning_rate', 'eval/knn/top1', 'health/effective_rank']
    names += ['health/feature_std', 'health/morphed_share', 'health/target_variance']
    names += [f'health/{kind}/block_01' for kind in ('grad_norm', 'update_ratio')]
    names += ['speed/images_per_second', 'speed/wait_share']
    charts = [chart for charts in logs.LAYOUT.values() for chart in charts.values()]
    found = [
        sum(re.fullmatch(expression, name) is not None for name in names)
        for _, expressions in charts
        for expression in expressions
    ]
    assert found == [1] * len(charts) == [1] * len(names)


def test_throughput_leaves_out_compilation_and_pauses():
    clock = Clock()
    throughput = logs.Throughput(
        batch_size=64, total_steps=101, step_flops=3e12, peak=6e12, clock=clock
    )
    with throughput.waiting():
        clock.now += 50  # the first batch
    clock.now += 500  # the compilation
    throughput.start(1)
    with throughput.waiting():
        clock.now += 2
    clock.now += 6
    with throughput.paused():
        clock.now += 12
    speeds = throughput.measure(5)
    assert speeds == pytest.approx(
        {
            'speed/images_per_second': 32.0,  # 4 steps of 64 images in 8 s
            'speed/step_seconds': 2.0,
            'speed/wait_share': 0.25,
            'speed/mfu': 0.25,  # 1.5e12 of 6e12 FLOP/s
            'speed/eta_seconds': 96 * 20 / 4,  # pauses at their rate so far
        }
    )
    clock.now += 5
    speeds = throughput.measure(10)
    assert speeds['speed/step_seconds'] == 1.0
    assert speeds['speed/wait_share'] == 0.0
    assert speeds['speed/eta_seconds'] == pytest.approx(91 * 25 / 9)


def test_throughput_before_anything_was_timed():
    throughput = logs.Throughput(batch_size=8, total_steps=10, clock=Clock())
    assert throughput.measure(1) == {}
    assert throughput.measure(1) == {}


def test_mfu_is_left_out_where_the_peak_is_unknown():
    clock = Clock()
    throughput = logs.Throughput(batch_size=8, total_steps=10, step_flops=1e9, clock=clock)
    throughput.start(0)
    clock.now += 1
    assert 'speed/mfu' not in throughput.measure(1)


def test_lines_that_are_none_are_left_out(tmp_path):
    digits = '1' * 5_000
    lines = ['{"step": 1, "a": ' + digits + '}', '{"step": ' + digits + '}', '[' * 99_999]
    lines += ['{"step": 2, "a": -' + '1' * 400 + ', "b": 3}']
    (tmp_path / logs.METRICS_FILE).write_text('\n'.join(lines) + '\n')
    inf = float('inf')
    assert logs.read_metrics(tmp_path) == [{'step': 1, 'a': inf}, {'step': 2, 'a': -inf, 'b': 3}]
