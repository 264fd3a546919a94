"""A run that is killed and started again equals one that never stopped, to the last bit."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mim_jax.logs import read_metrics

ROOT = Path(__file__).parent.parent
STEPS = 100  # enough that a signal does not come too late on a busy machine

CONFIG = f"""
'''Small, with all that a resumed run could get wrong: EMA, drop path, jitter, crops.'''
from mim_jax.experiment import default_config

def get_config():
    config = default_config('simmim')
    config.data.update(image_size=(32, 32), batch_size=8, flip=0.5)
    config.data.colors.update(brightness=0.4, contrast=0.4, saturation=0.4)
    config.data.crop.mode = 'random'
    config.data.source.update(num_train=40, num_test=16)
    config.model.update(
        patch_size=(8, 8), width=32, depth=2, heads=2, mask_token=True, drop_path=0.2
    )
    config.train.update(total_steps={STEPS}, ema=dict(decay=0.9))
    config.checkpoint.every_steps = 10
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=2)
    return config
"""


class Run:
    """The command in a folder of its own; all runs share a compilation cache."""

    def __init__(self, folder, cache):
        self.folder = folder
        folder.mkdir()
        (folder / 'small.py').write_text(CONFIG)
        self.env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_COMPILATION_CACHE_DIR': str(cache)}
        self.env.pop('XLA_FLAGS', None)

    def start(self, *arguments):
        command = [sys.executable, '-m', 'mim_jax.main', '--config=small.py', '--workdir=work']
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *arguments):
        process = self.start(*arguments)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    def losses(self):
        return {
            line['step']: line['train/loss']
            for line in read_metrics(self.folder / 'work')
            if 'train/loss' in line
        }

    def stop_after(self, step, signal_number, *arguments):
        """Sends a signal once the line of `step` is printed; returns the status and the rest."""
        process = self.start(*arguments)
        seen = []
        for line in process.stdout:
            seen.append(line)
            if re.match(rf'step +{step}/', line) and 'loss' in line:
                process.send_signal(signal_number)
                break
        rest = process.stdout.read()
        return process.wait(), ''.join(seen) + rest


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def never_stopped(tmp_path_factory, cache):
    run = Run(tmp_path_factory.mktemp('whole') / 'run', cache)
    run.finish()
    losses = run.losses()
    assert sorted(losses) == list(range(1, STEPS + 1))
    return losses


@pytest.mark.slow
def test_killed_and_started_again(never_stopped, tmp_path, cache):
    run = Run(tmp_path / 'run', cache)
    status, output = run.stop_after(75, signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    before = run.losses()
    output = run.finish()
    assert 'resuming after step' in output
    assert {**before, **run.losses()} == never_stopped
    assert run.losses() == never_stopped


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_and_with_other_workers(never_stopped, tmp_path, cache):
    run = Run(tmp_path / 'run', cache)
    run.stop_after(1, signal.SIGKILL)
    run.finish('--config.data.workers=2')
    assert run.losses() == never_stopped


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'name', 'stopped'), [(signal.SIGTERM, 'SIGTERM', 75), (signal.SIGINT, 'Ctrl-C', 0)]
)
def test_a_signal_saves_and_exits_cleanly(never_stopped, tmp_path, cache, number, name, stopped):
    run = Run(tmp_path / 'run', cache)
    given = [f'--stopped_status={stopped}'] if stopped else []
    status, output = run.stop_after(3, number, '--config.checkpoint.every_steps=1000', *given)
    assert status == stopped, output
    assert re.search(rf'^{name}: step \d+ is saved; the same command', output, re.MULTILINE), output
    output = run.finish(*given)
    assert 'resuming after step' in output
    assert run.losses() == never_stopped


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_keep_a_run_from_stopping(never_stopped, tmp_path, cache):
    run = Run(tmp_path / 'run', cache)
    # Batches enough are made ahead that the workers hang in the middle of the run.
    process = run.start('--config.data.workers=1', '--config.train.total_steps=100000')
    workers = None
    for line in process.stdout:
        if re.match('step +3/', line) and 'loss' in line:
            # Spawned by multiprocessing, and watching for their parent's end.
            found = subprocess.run(
                ['pgrep', '-P', str(process.pid), '-f', 'spawn_main'],
                capture_output=True,
                text=True,
                check=True,
            )
            workers = [int(pid) for pid in found.stdout.split()]
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            process.send_signal(signal.SIGTERM)
            break
    assert workers
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert 'SIGTERM: step' in output
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)


TOKENIZER = """
'''A method that carries state of its own from step to step.'''
from mim_jax.experiment import default_config

def get_config():
    config = default_config('vqkd')
    config.data.update(image_size=(32, 32), batch_size=8)
    config.data.crop.mode = 'none'
    config.data.source.update(num_train=40, num_test=16)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.decoder.update(width=16, depth=1, heads=2)
    config.objective.quantizer.update(num_codes=8, width=4)
    with config.objective.unlocked():
        config.objective.target = default_config('simmim').objective.target
    config.mesh.data = 1
    config.eval.evaluators = ()
    config.train.total_steps = 4
    config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=1)
    return config
"""


@pytest.mark.slow
def test_state_of_a_method_is_resumed_too(tmp_path, monkeypatch):
    from mim_jax import main
    from mim_jax.stopping import Stop

    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    (tmp_path / 'tokenizer.py').write_text(TOKENIZER)

    def losses(name):
        command = [f'--config={tmp_path / "tokenizer.py"}', f'--workdir={tmp_path / name}']
        assert main.main(command) == 0
        lines = read_metrics(tmp_path / name)
        return {line['step']: line['train/loss'] for line in lines if 'train/loss' in line}

    class StopAtTwo(Stop):
        def received(self, step):
            return 'SIGTERM' if step == 2 else None

    whole = losses('whole')
    with monkeypatch.context() as stopping:
        stopping.setattr(main, 'Stop', StopAtTwo)
        assert losses('parts') == {step: whole[step] for step in (1, 2)}
    assert losses('parts') == whole


@pytest.mark.slow
def test_an_evaluation_that_a_signal_cut_off_is_made_up_for(tmp_path, monkeypatch):
    from mim_jax import main
    from mim_jax.stopping import Stop

    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    config = TOKENIZER.replace(
        'config.eval.evaluators = ()', "config.eval.evaluators = ('health',)"
    )
    (tmp_path / 'tokenizer.py').write_text(config)

    def evaluated(name):
        command = [f'--config={tmp_path / "tokenizer.py"}', f'--workdir={tmp_path / name}']
        assert main.main([*command, '--config.eval.every_steps=2']) == 0
        lines = read_metrics(tmp_path / name)
        return [line for line in lines if any(key.startswith('eval/') for key in line)]

    class StopAtTwo(Stop):
        def received(self, step):
            return 'SIGTERM' if step == 2 else None

    whole = evaluated('whole')
    assert [line['step'] for line in whole] == [0, 2, 4]
    with monkeypatch.context() as stopping:
        stopping.setattr(main, 'Stop', StopAtTwo)
        assert evaluated('parts') == whole[:1]
    assert evaluated('parts') == whole
