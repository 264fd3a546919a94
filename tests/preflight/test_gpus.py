"""A step compiled for NVIDIA GPUs that are not there, by JAX's plugin for CUDA."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from mim_jax import sharding
from mim_jax.errors import UserError
from mim_jax.logs import peak_flops
from mim_jax.models.attention_kernels import cudnn_attention
from mim_jax.preflight import chips, collectives, gpus, topology
from mim_jax.preflight.__main__ import main

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'quickstart.py'
SMALL = (
    f'--config={CONFIG}',
    '--config.model.depth=1',
    '--config.objective.target.model.depth=1',
    '--config.objective.morphing.schedule=none',
    '--config.data.source.name=tfds',
    '--config.data.source.dataset=not_there',
    '--config.mesh.min_shard_size=1024',
)


@pytest.fixture
def plugin():
    pytest.importorskip('jax_plugins.xla_cuda13', reason='jax-cuda13-plugin is not installed')
    pytest.importorskip('nvidia.cu13', reason='nvidia-cuda-nvcc is not installed')


def test_rates_and_memory_of_every_gpu_are_known():
    for gpu in gpus.GPUS.values():
        assert chips.chip(gpu.kind) == chips.Chip(gpu.memory, gpu.network)
        assert peak_flops(gpu.kind) is not None


def test_jax_takes_a_share_of_the_memory(monkeypatch):
    for name in gpus.SHARE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert gpus.share() == 0.75
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
    assert gpus.share() == 0.9


def test_a_missing_plugin_is_told_with_what_to_install(monkeypatch):
    def missing(**_):
        raise NotImplementedError('topology not implemented for cuda')

    monkeypatch.setattr(topologies, 'get_topology_desc', missing)
    said = f'not implemented for cuda.*: pip install jax-cuda13-plugin=={jax.__version__} nvidia'
    with pytest.raises(UserError, match=said):
        topology.devices('h100')
    for wrong in ('h100:0', 'h100:4x4', 'h100:'):
        with pytest.raises(UserError, match='h100:8 are eight GPUs of a host'):
            topology.devices(wrong)


@pytest.mark.slow
def test_gpus_and_hosts_of_them_are_described(plugin):
    for name, gpu in gpus.GPUS.items():
        (device,) = topology.devices(name)
        assert (device.platform, device.device_kind) == ('gpu', gpu.kind)
        place = jax.sharding.SingleDeviceSharding(device)
        x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=place)
        compiled = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
        assert compiled.memory_analysis().argument_size_in_bytes == 2 * 256 * 256
    devices = topology.devices('a100:4', slices=2)
    assert [device.process_index for device in devices] == [0] * 4 + [1] * 4
    assert sharding.make_mesh(sharding.MeshConfig(fsdp=8), devices).shape['fsdp'] == 8


@pytest.mark.slow
@pytest.mark.parametrize('n', [2, 4, 8])
def test_a_ring_of_gpus_sends_what_each_kind_is_known_to(plugin, n):
    """In a loop beside other work, where collectives start and end."""

    def summed(x, w):
        def body(carry, _):
            x_ = x + carry
            right = [(i, (i + 1) % n) for i in range(n)]
            parts = (
                jax.lax.all_gather(x_, 'x'),
                jax.lax.psum(x_, 'x'),
                jax.lax.psum_scatter(x_, 'x', tiled=True),
                jax.lax.all_to_all(x_, 'x', 0, 0, tiled=True),
                jax.lax.ppermute(x_, 'x', right),
            )
            beside = jnp.tanh(w @ w) @ w
            return sum(part.sum() for part in (*parts, beside)) / 1e9, None

        return jax.lax.scan(body, jnp.zeros(()), length=3)[0]

    mesh = Mesh(np.array(topology.devices(f'h100:{n}')), ('x',), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        summed, mesh=mesh, in_specs=(P('x'), P()), out_specs=P(), check_vma=False
    )
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8 * n, 16), (128, 128))]
    text = jax.jit(mapped).lower(*arrays).compile().as_text()
    assert '-start(' in text
    part = 8 * 16 * 4  # bytes on each device
    assert collectives.sent(text) == {
        'all-gather': 3 * (n - 1) * part,
        'all-reduce': 3 * 2 * (n - 1) * part // n,
        'all-to-all': 3 * (n - 1) * part // n,
        'collective-permute': 3 * part,
        'reduce-scatter': 3 * (n - 1) * part // n,
    }


@pytest.mark.slow
def test_groups_may_be_parts_of_an_axis(plugin):
    mesh = Mesh(np.array(topology.devices('h100:8')), ('x',), axis_types=(AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, P('x'))
    summed = jax.jit(lambda x: x.reshape(2, 4, 32, 16).sum(1), in_shardings=place)
    text = summed.lower(jax.ShapeDtypeStruct((256, 16), jnp.float32)).compile().as_text()
    size = 32 * 16 * 4  # of a row of the result: summed among 4, gathered among 2
    assert collectives.sent(text) == {'all-gather': size, 'all-reduce': 2 * 3 * size // 4}


@pytest.mark.slow
def test_a_step_for_gpus_is_told_without_any(plugin, capfd, monkeypatch):
    for name in gpus.SHARE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    asked = [*SMALL, '--topology=h100:4', '--config.mesh.data=1', '--config.mesh.fsdp=4']
    assert main([*asked, '--config.data.batch_size=64']) == 0
    said = capfd.readouterr().out
    assert 'data 1, fsdp 4, tensor 1 of 4 x NVIDIA H100 80GB HBM3' in said
    assert 'of 59.33 GiB on a chip' in said
    assert 'fits in what JAX takes, 75% of 79.11 GiB (XLA_CLIENT_MEM_FRACTION)' in said
    # By hand: of the student patches 108 x 96, queries, keys and values 96 x 288, the projection
    # 96 x 96, the two of the MLP 96 x 384 and the head 96 x 96 are split. Each chip sends three
    # quarters of the sums of their gradients.
    split = 108 * 96 + 96 * 288 + 96 * 96 + 2 * 96 * 384 + 96 * 96
    assert f'reduce-scatter {3 / 4 * 4 * split / 2**10:.2f} KiB' in said


@pytest.mark.slow
def test_the_kernel_of_cudnn_is_compiled_for_gpus_that_are_not_there(plugin):
    pytest.importorskip('nvidia.cudnn', reason='nvidia-cudnn-cu13 is not installed')
    mesh = sharding.make_mesh(sharding.MeshConfig(), topology.devices('h100'))
    place = jax.sharding.NamedSharding(mesh, P())

    def loss(q, k, v):
        return cudnn_attention(q, k, v).astype(jnp.float32).sum()

    gradient = jax.jit(sharding.on_mesh(jax.grad(loss), mesh), in_shardings=(place,) * 3)
    x = jax.ShapeDtypeStruct((2, 197, 2, 64), jnp.bfloat16)
    text = gradient.lower(x, x, x).compile().as_text()
    assert 'fmhaScaleBiasSoftmaxBackward' in text
