"""What a look at a run says, against plain formulas; and the log of a run with it."""

import jax
import numpy as np
import pytest

from mim_jax import data, experiment, health, norms, sharding
from mim_jax.data import image_fields
from mim_jax.logs import read_metrics
from mim_jax.program import Program
from mim_jax.trainer import Trainer

RNG = np.random.default_rng(0)


def figures(features):
    return health.figures({'features': np.asarray(features, np.float32)})


@pytest.mark.parametrize('shape', [(40, 12), (9, 30)])
def test_rank_and_deviation_by_hand(shape):
    rows = RNG.normal(size=shape).astype(np.float32) + 1
    found = figures(rows)
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    rank = np.exp(-np.sum(shares * np.log(shares)))
    assert found['health/effective_rank'] == pytest.approx(rank, rel=1e-5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    spread = np.mean([np.std(unit[:, i]) for i in range(shape[1])]) * shape[1] ** 0.5
    assert found['health/feature_std'] == pytest.approx(spread, rel=1e-5)


def test_known_answers():
    collapsed = figures(np.tile(RNG.normal(size=12), (30, 1)))
    assert collapsed['health/effective_rank'] == pytest.approx(1, abs=1e-3)
    assert collapsed['health/feature_std'] == pytest.approx(0, abs=1e-6)
    everywhere = figures(RNG.normal(size=(256, 64)))
    assert everywhere['health/effective_rank'] > 50
    assert everywhere['health/feature_std'] == pytest.approx(1, abs=0.02)
    assert figures(np.zeros((4, 3)))['health/feature_std'] == 0
    broken = figures(np.full((4, 3), np.inf))
    assert np.isnan(broken['health/effective_rank']) and np.isnan(broken['health/feature_std'])
    others = health.figures({'features': np.eye(2), 'morphed_share': np.float32(0.25)})
    assert others['health/morphed_share'] == 0.25


def make_program(config, batch_size, **mesh):
    config.data.batch_size = batch_size
    config.mesh.update({'data': 1, 'min_shard_size': 64, **mesh})
    return Program.make(experiment.from_config(config), epoch_examples=64, fields=image_fields(10))


@pytest.mark.parametrize(
    ('ways', 'parts', 'count'),
    [(1, 1, 256), (8, 1, 32), (5, 4, 48), (8, 3, 30), (1, 300, 300), (512, 1, 1), (512, 3, 3)],
)
def test_how_many_images_are_looked_at(ways, parts, count):
    assert health.rows_per_device(ways=ways, parts=parts) == count
    assert (ways * count) % parts == 0


@pytest.mark.slow
def test_every_mesh_sees_the_same(tiny_config):
    """All rows are looked at here; and the norms of the step agree."""
    seen = []
    for mesh in ({}, {'data': 2, 'fsdp': 2, 'tensor': 2}):
        config = tiny_config('dtm')
        config.log.health = True
        program = make_program(config, 16, **mesh)
        run = program.run
        host = data.train_batches(data.make_source(run.data, split='train'), run.data, seed=0)
        batch = sharding.put_batch(next(host), program.mesh)
        state = program.init(program.pretrained())
        found = health.figures(jax.device_get(health.compiled_checkup(program)(state, batch)))
        _, metrics = program.trace().lower().compile()(state, batch)
        seen.append((found, jax.device_get(metrics)))
    (found, metrics), (other_found, other_metrics) = seen
    assert found.keys() >= {'health/prediction_variance', 'health/target_variance'}
    assert 0 <= found['health/morphed_share'] <= 1
    assert other_found == pytest.approx(found, rel=1e-3)
    for name, values in metrics['blocks'].items():
        np.testing.assert_allclose(other_metrics['blocks'][name], values, rtol=2e-3, err_msg=name)
    total = np.sqrt(np.sum(np.square(metrics['blocks']['grad_norm'])))
    np.testing.assert_allclose(total, metrics['grad_norm'], rtol=1e-5)


@pytest.mark.slow
def test_the_log_of_a_run_says_how_it_fares(tiny_config, tmp_path):
    config = tiny_config('mae', total_steps=3)
    config.eval.evaluators = ()
    config.log.update(health=True, every_steps=2)
    trainer = Trainer(experiment.from_config(config), tmp_path)
    trainer.train()
    lines = read_metrics(tmp_path)
    assert [line['step'] for line in lines] == [2, 3]
    names = norms.names(trainer.program.abstract_state.variables['params'])
    assert names == ('decoder', 'block_01', 'block_02', 'encoder')
    for line in lines:
        found = {name for name in line if name.startswith('health/')}
        figures = ('effective_rank', 'feature_std', 'prediction_variance', 'target_variance')
        blocks = [f'{kind}/{name}' for kind in ('grad_norm', 'update_ratio') for name in names]
        assert found == {f'health/{name}' for name in (*figures, *blocks)}
        assert all(line[name] is not None and line[name] >= 0 for name in found)
