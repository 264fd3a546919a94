"""A run in a gs:// work directory: killed, resumed, listed, described, evaluated, exported, loaded.

The store is a process on this machine, see `buckets`.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mim_jax import checkpoints, integrity, layout, storage
from mim_jax.logs import METRICS_FILE, SUPERSEDED_FILE, read_metrics
from tests import buckets

ROOT = Path(__file__).parent.parent
STEPS, KILLED = 60, 32
WORKDIR = f'gs://{buckets.BUCKET}/runs/killed'

CONFIG = f"""
'''Small, and without what would take its time.'''
from mim_jax.experiment import default_config

def get_config():
    config = default_config('simmim')
    config.data.update(image_size=(32, 32), batch_size=8, flip=0.5)
    config.data.source.update(num_train=40, num_test=16)
    config.model.update(patch_size=(8, 8), width=16, depth=1, heads=2, mask_token=True)
    config.train.total_steps = {STEPS}
    config.checkpoint.every_steps = 10
    config.eval.evaluators = ()
    config.log.update(every_steps=1, progress=False, num_pictures=2, health=False)
    return config
"""


@pytest.fixture(scope='module')
def environment():
    pytest.importorskip('gcsfs')
    pytest.importorskip('gcp_storage_emulator')
    with buckets.serving() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in {**found, 'MIM_JAX_NUM_PROCESSES': '1'}.items():
            patch.setenv(name, value)
        yield found


def start(folder, workdir):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    env['XLA_FLAGS'] = re.sub(r'\S*device_count=\d+', '', env.get('XLA_FLAGS', ''))
    command = [sys.executable, '-m', 'mim_jax.main', '--config=small.py', f'--workdir={workdir}']
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory, environment):
    """Where a run that nothing happened to is in `whole`, and one in WORKDIR was killed."""
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'small.py').write_text(CONFIG)
    whole = start(folder, 'whole')
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    process, seen = start(folder, WORKDIR), []
    for line in process.stdout:
        seen.append(line)
        if re.match(rf'step +{KILLED}/', line):
            process.kill()
            break
    seen.append(process.stdout.read())
    assert process.wait() == -signal.SIGKILL, ''.join(seen)
    return folder


def losses(workdir):
    return {x['step']: x['train/loss'] for x in read_metrics(workdir) if 'train/loss' in x}


@pytest.mark.slow
def test_killed_and_started_again(folder):
    workdir = storage.path(WORKDIR)
    saved = layout.saved_steps(WORKDIR)
    assert saved and saved[-1] <= KILLED
    assert max(losses(WORKDIR)) >= saved[-1]
    # What a kill leaves of a checkpoint that was being written.
    half = layout.checkpoints(WORKDIR) / str(STEPS - 1)
    storage.write_whole(half / integrity.WHOLE, '{}')
    process = start(folder, WORKDIR)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f'resuming after step {saved[-1]} of {STEPS}' in output
    assert not half.exists()

    assert losses(WORKDIR) == losses(folder / 'whole')
    assert sorted(losses(WORKDIR)) == list(range(1, STEPS + 1))
    expected, step = checkpoints.restore_variables(folder / 'whole')
    found, last = checkpoints.restore_variables(WORKDIR)
    assert last == step == STEPS
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # All that a run leaves in a folder is there, and nothing that belongs to this machine.
    there, here = storage.files(workdir), storage.files(folder / 'whole')
    assert {n for n in there if '/' not in n} - {SUPERSEDED_FILE} == {
        n for n in here if '/' not in n
    } - {layout.LOCK_FILE}
    assert {n for n in there if n.startswith('pictures/')} == {
        n for n in here if n.startswith('pictures/')
    }
    assert len([n for n in there if n.startswith('tensorboard/events')]) == 2
    assert (workdir / METRICS_FILE).read_text().count('\n') == STEPS
    assert f'checkpoints/{STEPS}/{integrity.FILE}' in there


@pytest.mark.slow
def test_what_reads_a_work_directory(folder, tmp_path, capsys):
    import mim_jax
    from mim_jax.evaluate.__main__ import main as evaluate
    from mim_jax.runs.__main__ import main as runs
    from mim_jax.weights.__main__ import main as weights

    last = layout.saved_steps(WORKDIR)[-1]
    assert runs([f'gs://{buckets.BUCKET}/runs']) == 0
    assert re.search(rf'killed +(finished|stopped) +{last}/{STEPS}', capsys.readouterr().out)
    assert runs([f'--describe={WORKDIR}']) == 0
    assert f'step {last} of {STEPS}' in capsys.readouterr().out

    expected, _ = checkpoints.restore_variables(WORKDIR)
    kernel = expected['params']['encoder']['patch_embed']['kernel']
    loaded = mim_jax.load(WORKDIR)
    np.testing.assert_array_equal(loaded.params['patch_embed']['kernel'], kernel)
    file = f'gs://{buckets.BUCKET}/encoder.safetensors'
    for out in (file, tmp_path / 'encoder.safetensors'):
        assert not weights(['export', f'--workdir={WORKDIR}', f'--out={out}', '--to=mim_jax'])
        loaded = mim_jax.load(out)
        np.testing.assert_array_equal(loaded.params['patch_embed']['kernel'], kernel)

    assert evaluate([f'--workdir={WORKDIR}', '--evaluators=knn', '--config.eval.knn.k=1']) == 0
    written = storage.files(storage.path(WORKDIR) / 'evaluation')
    assert {'results.json', 'results.md'} <= written.keys()
    assert any(name.endswith('.png') for name in written)
