"""TPU slices and GPUs that need not be there."""

import os
from typing import Any

from mim_jax.errors import UserError
from mim_jax.preflight import gpus

# No chip is claimed: a run, or another preflight, may have libtpu's lock. What it looks for on a
# TPU's host, and complains of where there is none, plays no part in what is compiled. Its log files
# would lie in /tmp; what is wrong with a program comes as an exception.
ENVIRONMENT = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_LOG_DIR': 'disabled',
    'TPU_MIN_LOG_LEVEL': '3',
    'TPU_STDERR_LOG_LEVEL': '3',
}


def devices(name: str, *, slices: int = 1) -> list[Any]:
    """The devices of TPU slices of a topology such as 'v5e:4x4', or of hosts of GPUs such as
    'h100:8', for ahead-of-time compilation.

    Raises UserError where the package libtpu or JAX's plugin for CUDA is missing or does not know
    the topology.
    """
    if gpus.is_named(name):
        return gpus.devices(name, hosts=slices)
    from jax.experimental import topologies

    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {'num_slices': slices} if slices > 1 else {}
    if name.startswith('v4:'):
        options['chip_config_name'] = 'megacore'  # one device is one chip, as a program finds it
    try:
        described = topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
    except Exception as error:  # libtpu raises whatever it likes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'--topology={name}: cannot be described ({reason}); install the package libtpu and '
            f'name a topology such as v5e:4x4, or GPUs ({", ".join(gpus.GPUS)}, h100:8).'
        ) from error
    return described.devices
