"""Which of the Pallas kernels of a computation serves the devices that a program is traced for."""

import importlib
from types import ModuleType

import jax

from mim_jax import sharding
from mim_jax.errors import UserError

KINDS = {'TPU': 'tpu', 'NVIDIA': 'gpu'}  # first word of a device's name: end of a module's


def kind_here() -> str | None:
    """'tpu', 'gpu' or, where no kernel serves the devices (see `sharding.device_kind`), None."""
    return KINDS.get(sharding.device_kind().split()[0])


def kernel(stem: str, field: str, kind: str | None = None) -> ModuleType:
    """The module `stem`_tpu or `stem`_gpu, by `kind`, without one by the devices.

    field: the setting that asks for it, for the sentence of an error.

    Raises UserError on other devices, and with a jax whose Pallas lacks what the kernel is made of.
    """
    kind = kind or kind_here()
    if kind is None:
        raise UserError(
            f'{field} is for TPUs and NVIDIA GPUs since Ampere, and this is '
            f"{sharding.device_kind()!r}: set it to 'xla' wherever it is set."
        )
    try:
        return importlib.import_module(f'{stem}_{kind}')
    except ImportError as error:  # a later jax: the parts of Pallas are not stable
        raise UserError(
            f"{field} does not work with jax {jax.__version__} ({error}): set it to 'xla'."
        ) from error
