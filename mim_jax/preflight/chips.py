"""What chips hold and send, as their makers publish it; how fast they compute is in `logs`."""

import dataclasses
import re

from mim_jax.preflight import gpus

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, a JAX device.

    Attributes:
        memory: bytes.
        network: bytes/s that it sends to others of its slice (TPU, over all links) or of its host
            (NVLink), in one direction.
    """

    memory: float
    network: float


# By `device_kind`; the first expression found in it wins. TPU: cloud.google.com/tpu/docs (v4, v5e,
# v5p, v6e). NVIDIA: see `gpus`; other forms of a GPU, and parts of one by MIG, have other names,
# memory and links.
CHIPS = (
    (r'TPU v4', Chip(32 * GIB, 300e9)),
    (r'TPU v5 ?(lite|e)', Chip(16 * GIB, 200e9)),
    (r'TPU v5', Chip(95 * GIB, 600e9)),
    (r'TPU v6', Chip(32 * GIB, 400e9)),
    *((f'{re.escape(gpu.kind)}$', Chip(gpu.memory, gpu.network)) for gpu in gpus.GPUS.values()),
)


def chip(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names, None if it is not known."""
    for pattern, found in CHIPS:
        if re.search(pattern, device_kind):
            return found
    return None
