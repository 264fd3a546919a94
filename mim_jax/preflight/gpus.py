"""NVIDIA GPUs, as a compiler is told of them, that need not be there."""

import dataclasses
import os
import re
from typing import Any

import jax

from mim_jax.errors import UserError

# What it takes to compile: JAX's plugin in JAX's version, an assembler, device functions.
PACKAGES = f'jax-cuda13-plugin=={jax.__version__} nvidia-cuda-nvcc'
INCOMPLETE = re.compile(r'libdevice not found|suitable version of (ptxas|nvlink)')
# Of a GPU's memory, what JAX takes for arrays unless it is told otherwise by the environment:
# docs.jax.dev/en/latest/gpu_memory_allocation.html.
SHARE = 0.75
SHARE_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU on a board of its form.

    Attributes:
        kind: its `jax.Device.device_kind`.
        capability: compute capability (major, minor).
        multiprocessors: of them.
        lanes: float32 units of a multiprocessor.
        clock: GHz.
        shared: bytes of shared memory of a multiprocessor; one block may have 1 KiB less.
        cache: bytes of the second-level cache.
        memory: bytes that it reports.
        bandwidth: bytes/s of that.
        network: bytes/s that it sends to others of its host, by NVLink in one direction.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    clock: float
    shared: int
    cache: int
    memory: int
    bandwidth: float
    network: float


# From XLA's own descriptions, xla/backends/gpu/target_config/specs in github.com/openxla/xla;
# `network` from NVIDIA's data sheets, the names as these devices report them.
GPUS = {
    'a100-40gb': Gpu(
        'NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 1.41, 167_936, 41_943_040, 42_331_013_120,
        1.5552e12, 300e9,
    ),
    'a100': Gpu(
        'NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 1.41, 167_936, 41_943_040, 85_100_068_864,
        2.03904e12, 300e9,
    ),
    'h100': Gpu(
        'NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 1.98, 233_472, 52_428_800, 84_942_979_072,
        3.35232e12, 450e9,
    ),
    'h200': Gpu(
        'NVIDIA H200', (9, 0), 132, 128, 1.98, 233_472, 52_428_800, 151_397_597_184,
        4.8e12, 450e9,
    ),
    'b200': Gpu(
        'NVIDIA B200', (10, 0), 148, 128, 1.965, 233_472, 132_644_864, 191_514_411_008,
        7.67232e12, 900e9,
    ),
}  # fmt: skip

_TARGET = """
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  name: "{kind}"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  core_count: {multiprocessors}
  fpus_per_core: {lanes}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {cache}
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  shared_memory_per_block: 49152
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
"""


def target(gpu: Gpu) -> str:
    """What a compiler is told of a GPU, XLA's GpuTargetConfigProto as text."""
    major, minor = gpu.capability
    return _TARGET.format(
        **dataclasses.asdict(gpu),
        major=major,
        minor=minor,
        features='ACCELERATED_FEATURES' if major >= 9 else 'NONE',
        optin=gpu.shared - 1024,
    )


def is_named(topology: str) -> bool:
    """Whether a topology is one of GPUs: h100, or h100:8 for those of a host."""
    return topology.partition(':')[0] in GPUS


def devices(topology: str, *, hosts: int = 1) -> list[Any]:
    """The devices of `hosts` hosts of GPUs, for ahead-of-time compilation.

    topology: a name of GPUS, alone or with the number of GPUs of a host, 'h100:8'.

    Raises UserError where JAX's plugin for CUDA is missing or takes no such topology.
    """
    from jax.experimental import topologies

    name, colon, count = topology.partition(':')
    if colon and not re.fullmatch(r'[1-9]\d{0,3}', count):
        raise UserError(f'--topology={topology}: {name}:8 are eight GPUs of a host, from 1.')
    try:
        described = topologies.get_topology_desc(
            platform='cuda',
            topology_name=topology,
            topology=f'{hosts}x1x{count or 1}',  # parts, hosts of each, GPUs of a host
            target_config=target(GPUS[name]),
        )
    except Exception as error:  # a plugin raises whatever it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'--topology={topology}: cannot be described ({reason}); it needs a part of what '
            f'jax[cuda13] installs: pip install {PACKAGES}.'
        ) from error
    return described.devices


def share() -> float:
    """Of a GPU's memory, what JAX may fill with arrays in this environment."""
    given = next((os.environ[name] for name in SHARE_VARIABLES if os.environ.get(name)), None)
    return float(given) if given else SHARE
