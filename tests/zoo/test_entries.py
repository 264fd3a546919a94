"""The zoo has every method of the registry, behind what it learns from, in one budget."""

from pathlib import Path

import pytest

from mim_jax import config as configs
from mim_jax import experiment
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.main import default_workdir
from mim_jax.objectives import OBJECTIVES
from mim_jax.zoo.entries import BUDGET, entries, make_run, weights, with_needed

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return entries('embedded')


def test_every_method_comes_after_the_runs_that_its_config_names(known):
    assert known.keys() >= OBJECTIVES.keys()
    names = list(known)
    for name, entry in known.items():
        named = dict(weights(configs.load(entry.spec).objective, 'objective'))
        of_runs = {field: path for field, path in named.items() if path.startswith('runs/')}
        assert of_runs.keys() == entry.needs.keys(), name
        for field, need in entry.needs.items():
            assert str(default_workdir(known[need].spec)) == of_runs[field]
            assert names.index(need) < names.index(name)
    assert any(entry.needs for entry in known.values())


def test_every_config_takes_the_budget_and_its_schedule_fits_in(known):
    given = [*BUDGET, ('train.total_steps', '40')]
    for name, entry in known.items():
        config = configs.override(configs.load(entry.spec), experiment.Experiment, given)
        run = experiment.from_config(config)
        assert (run.data.batch_size, run.train.total_steps) == (64, 40), name
        assert run.eval.evaluators == ('knn', 'linear', 'health')
        assert (run.eval.knn.max_train, run.eval.linear.max_test) == (4096, 2048)
        clock = Clock(batch_size=64, epoch_examples=65536, total_steps=40)
        for section, what in ((run.eval, 'every'), (run.log, 'pictures_every')):
            assert clock.steps(section, what, path='') is None, name
        assert (clock.steps(run.optimizer, 'warmup', path='') or 0) <= 8, name


def test_what_is_asked_for_brings_what_it_learns_from(known):
    name, entry = next((n, e) for n, e in known.items() if e.needs)
    assert with_needed([name], known) == {name, *entry.needs.values()}
    with pytest.raises(UserError, match=r'--only=mea: there is no such method; there are .*\bmae'):
        with_needed(['mae', 'mea'], known)


def test_a_run_has_the_budget_then_the_given_fields_and_lies_in_its_folder(known, tmp_path):
    fields = (('data.batch_size', '8'), ('data.source.num_train', '32'))
    run = make_run(known['mae'], steps=3, seed=5, workdir=tmp_path, assignments=fields)
    assert (run.workdir, run.total_steps, run.seed) == (tmp_path / 'mae', 3, 5)
    assert run.experiment.seed == 5 and run.experiment.data.batch_size == 8
    assert '--config.seed=5' in run.command and '--config.log.every_steps=10' in run.command
    name, entry = next((n, e) for n, e in known.items() if e.needs)
    with pytest.raises(UserError, match=str(tmp_path / next(iter(entry.needs.values())))):
        make_run(entry, steps=3, seed=0, workdir=tmp_path)
