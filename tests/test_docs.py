"""The worked example of docs/objectives.md runs as it stands."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from mim_jax import main
from mim_jax.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent


def block(name):
    """The code of docs/objectives.md that follows the comment `test: NAME`."""
    text = (ROOT / 'docs' / 'objectives.md').read_text()
    return re.search(rf'<!-- test: {name} -->\n```python\n(.*?)```', text, re.DOTALL).group(1)


@pytest.mark.slow
def test_the_worked_example_of_a_method_trains(tmp_path, monkeypatch):
    code = block('method')
    assert len(code.splitlines()) < 60
    module = types.ModuleType('second_view')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    monkeypatch.setitem(OBJECTIVES, 'second_view', module.SecondView)
    monkeypatch.syspath_prepend(str(ROOT / 'configs'))
    (tmp_path / 'second_view.py').write_text(block('config'))
    monkeypatch.setenv('MIM_JAX_NUM_PROCESSES', '1')
    arguments = [
        f'--config={tmp_path / "second_view.py"}',
        f'--workdir={tmp_path / "run"}',
        '--config.train.total_steps=12',
        '--config.data.batch_size=16',
        '--config.data.source.num_train=16',
        '--config.data.source.num_test=16',
        '--config.eval.evaluators=()',
        '--config.mesh.data=1',
        '--config.log.every_steps=1',
        '--config.log.num_pictures=2',
        '--config.log.tensorboard=false',
        '--config.log.progress=false',
    ]
    assert main.main(arguments) == 0
    lines = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    losses = [line['train/loss'] for line in lines if 'train/loss' in line]
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]
    drawn = {path.name for path in (tmp_path / 'run' / 'pictures').iterdir()}
    assert drawn >= {'features_000012.png', 'mask_000012.png'}
