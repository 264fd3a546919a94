"""A run notices where the weights that it learns from have changed."""

import json

import jax
import numpy as np
import pytest

from mim_jax import experiment, fingerprints, trainer, work_directory
from mim_jax.errors import UserError
from mim_jax.weights import native

PARAMS = {'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}, 'b': np.float32(1)}


def test_every_number_name_and_shape_counts():
    kernel = PARAMS['a']['kernel']
    changed = kernel.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9, dtype=np.float32)
    others = [
        {**PARAMS, 'a': {'kernel': changed}},
        {**PARAMS, 'a': {'kernel': kernel.reshape(3, 2)}},
        {**PARAMS, 'a': {'kernel': kernel.astype(np.float64)}},
        {**PARAMS, 'a': {'core': kernel}},
        {'a': PARAMS['a']},
    ]
    assert len({fingerprints.of(params) for params in (PARAMS, *others)}) == 6
    same = {'b': PARAMS['b'], 'a': {'kernel': np.asfortranarray(kernel)}}
    assert fingerprints.of(same) == fingerprints.of(PARAMS)
    assert fingerprints.of(jax.tree.map(jax.numpy.asarray, PARAMS)) == fingerprints.of(PARAMS)


def test_what_is_compared(tmp_path):
    fingerprints.check(tmp_path, {'teacher': 'x'})  # an older run recorded nothing
    fingerprints.record(tmp_path, {'teacher': 'x', 'init': 'y'})
    fingerprints.check(tmp_path, {'teacher': 'x'})
    with pytest.raises(UserError, match='the weights of the teacher are not those'):
        fingerprints.check(tmp_path, {'teacher': 'z'})
    with pytest.raises(UserError, match='the weights of the init and the training data are not'):
        fingerprints.record(tmp_path, {'init': 'y', 'data': 'd'})
        fingerprints.check(tmp_path, {'init': 'z', 'data': 'e'})
    for damaged in ('{"teacher": ', '[1]'):
        (tmp_path / fingerprints.FILE).write_text(damaged)
        with pytest.raises(UserError, match='damaged'):
            fingerprints.check(tmp_path, {'teacher': 'x'})


@pytest.mark.slow
def test_a_teacher_that_changed_is_refused_at_resume(tiny_config, teacher_file, tmp_path):
    params, metadata = native.load(teacher_file)
    weights, workdir = tmp_path / 'teacher.safetensors', tmp_path / 'work'
    native.save(weights, params, metadata=metadata)

    def run(path=weights):
        config = tiny_config('dtm', total_steps=2)
        config.objective.target.weights = str(path)
        config.eval.evaluators = ()
        config.mesh.data = 1
        made = experiment.from_config(config)
        found = trainer.Trainer(made, workdir)
        work_directory.claim(workdir, made)
        return found

    run().train()
    recorded = json.loads((workdir / fingerprints.FILE).read_text())
    assert set(recorded) == {'teacher'}
    # Moved, and in another order and format of the file: the numbers are the same.
    moved = tmp_path / 'elsewhere'
    native.save(moved, dict(reversed(params.items())), metadata=metadata)
    run(moved)
    params['blocks']['norm1']['scale'] = params['blocks']['norm1']['scale'] + np.float32(1e-3)
    native.save(weights, params, metadata=metadata)
    before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match='the weights of the teacher are not those') as told:
        run()
    assert '\n' not in str(told.value)
    assert before == {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
