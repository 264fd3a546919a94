"""A step compiled for TPUs that are not there, by the package libtpu (the extra `tpu`)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mim_jax import sharding
from mim_jax.preflight import topology
from mim_jax.preflight.__main__ import main

pytest.importorskip('libtpu', reason='libtpu is not installed')

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'quickstart.py'
SMALL = (
    f'--config={CONFIG}',
    '--topology=v5e:2x2',
    '--config.model.depth=1',
    '--config.objective.target.model.depth=1',
    '--config.data.source.name=tfds',
    '--config.data.source.dataset=not_there',
    '--config.mesh.data=1',
    '--config.mesh.fsdp=4',
    '--config.mesh.min_shard_size=1024',
)


@pytest.mark.slow
def test_a_step_for_tpus_is_told_without_any(capfd):
    assert main([*SMALL, '--config.data.batch_size=64']) == 0
    said = capfd.readouterr().out
    assert 'data 1, fsdp 4, tensor 1 of 4 x TPU v5' in said
    assert '64 images, 16 on a chip' in said
    assert 'of 16.00 GiB on a chip' in said and said.count(': fits') == 1
    assert 'all-gather' in said.split('\nsent')[1]
    assert 'utilisation' in said


@pytest.mark.slow
def test_a_step_that_a_tpu_compiler_refuses_does_not_fit(capfd):
    assert main([*SMALL, '--row', '--config.data.batch_size=1048576']) == 1
    (row,) = capfd.readouterr().out.splitlines()
    cells = row.split(' | ')
    assert 'GiB of 16.00 GiB' in cells[5] and cells[6] == 'does not fit'


@pytest.mark.slow
def test_libtpu_itself_says_nothing():
    program = "from mim_jax.preflight import topology; print(len(topology.devices('v4:2x2x2')))"
    said = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (said.stdout, said.stderr) == ('8\n', '')


@pytest.mark.slow
def test_only_data_crosses_from_slice_to_slice():
    devices = topology.devices('v5e:2x2', slices=2)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2), devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == slices[:, :1, :1]).all() and sorted(slices[:, 0, 0]) == [0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5e:4x4', 'v6e:4x4', 'v4:2x2x4'])
@pytest.mark.parametrize('slices', [1, 2])
def test_axes_of_a_mesh_may_split_those_of_a_slice(name, slices):
    devices = topology.devices(name, slices=slices)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=2), devices)
    assert mesh.shape == {'data': 8 * slices, 'fsdp': 2, 'tensor': 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('argument', 'said'),
    [
        ('--topology=v9z:2x2', 'cannot be described (INVALID_ARGUMENT: Invalid TPU external name'),
        ('--topology=v5e:3x99', 'name a topology such as v5e:4x4'),
        ('--config.mesh.fsdp=8', 'needs 8 devices, but there are 4'),
        ('--config.mesh.data=3', 'needs 12 devices, but there are 4'),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(argument, said, capfd):
    assert main([*SMALL, argument]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith('error: ')]
    assert said in line
