"""`python -m mim_jax.preflight` as a user calls it; the devices are the eight simulated ones."""

from pathlib import Path

import pytest

from mim_jax.errors import UserError
from mim_jax.preflight import chips, topology
from mim_jax.preflight.__main__ import main

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'quickstart.py'
SMALL = (
    f'--config={CONFIG}',
    '--config.model.depth=1',
    '--config.objective.target.model.depth=1',
    '--config.data.source.name=tfds',
    '--config.data.source.dataset=not_there',
    '--config.data.batch_size=8',
    '--config.mesh.data=2',
    '--config.mesh.fsdp=4',
    '--config.mesh.min_shard_size=1024',
)


@pytest.mark.slow
def test_a_step_is_told_and_nothing_is_read_or_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, '--parameters', '--memory=1']) == 0
    said = capfd.readouterr().out
    assert 'data 2, fsdp 4, tensor 1 of 8 x cpu' in said
    assert '8 images, 1 on a chip' in said
    assert 'encoder/patch_embed/kernel' in said and "('fsdp'," in said
    assert 'all-gather' in said.split('\nsent')[1]
    assert 'of 1.00 GiB on a chip' in said and said.count(': fits') == 1
    assert main([*SMALL, '--memory=0.001', '--fit', '--row']) == 1
    rows = [line.split(' | ') for line in capfd.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == ['none, 1', 'dots, 1', 'full, 1']
    assert {len(row) for row in rows} == {10} and 'of 1.02 MiB' in rows[0][5]
    assert main([*SMALL, '--memory=1', '--fit']) == 0
    said = capfd.readouterr().out
    assert said.startswith('model.remat=none: ') and 'model.remat=dots' not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--slices=2'], 'of a --topology'),
        (['--slices=0', '--topology=v5e:2x4'], 'from 1'),
        (['--memory=-1'], 'more than 0'),
        (['--config.mesh.fsdp=3'], 'divisible by mesh'),
        (['--config.mesh.fsdp=16'], 'needs 32 devices'),
    ],
)
def test_mistakes_get_one_sentence(arguments, said, capfd, monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS')
    assert main([*SMALL, *arguments]) == 2
    assert said in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_topology_that_cannot_be_described_is_told():
    with pytest.raises(UserError, match='install the package libtpu and name a topology'):
        topology.devices('v5e:3x99')


def test_chips_are_known_by_their_kind():
    assert chips.chip('TPU v5 lite').memory == 16 * 2**30
    assert chips.chip('TPU v5').memory == 95 * 2**30
    assert chips.chip('TPU v6 lite').network == 400e9
    assert chips.chip('NVIDIA H100 80GB HBM3').network == 450e9
    assert chips.chip('NVIDIA H200').memory == pytest.approx(141 * 2**30, rel=1e-3)
    others = ('cpu', 'NVIDIA H100 PCIe', 'NVIDIA H100 NVL', 'NVIDIA H200 NVL', 'NVIDIA GH200 480GB')
    others += ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA A100-PCIE-40GB')
    assert [chips.chip(kind) for kind in others] == [None] * len(others)
