"""The step of a run, compiled, and what it takes of a chip."""

import dataclasses
import re
import time
from typing import Any

import jax

from mim_jax.errors import UserError
from mim_jax.experiment import Experiment
from mim_jax.flops import matmul_flops
from mim_jax.logs import peak_flops
from mim_jax.preflight import chips, collectives, gpus
from mim_jax.program import Program

# Stands in for what only the data knows, as do the fields that its config section assumes; the
# compiled step does not depend on it beyond constants.
ASSUMED_EPOCH = 1_281_167
# How the compilers for TPUs say how much memory a step wants that does not fit.
REFUSED = re.compile(
    r'(?:Used |HLO temporaries \()([\d.]+)([KMGT])(?: of|\) exceeds available) [^\n]*(?i:hbm)'
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is known of a step without running it.

    Attributes:
        program: the run's.
        model_flops: of one step over all chips, without what rematerialisation repeats.
        flops: with it.
        seconds: that compiling took.
        arguments, temporary: bytes per chip; None where the compiler does not say.
        memory: bytes per chip that the step needs, None if the compiler does not say.
        capacity: bytes of a chip that a step may fill, None if unknown.
        share: of a chip's memory that `capacity` is.
        sent: bytes that each chip sends in a step, by kind of collective.
    """

    program: Program
    model_flops: int
    flops: int
    seconds: float
    arguments: int | None = None
    temporary: int | None = None
    memory: float | None = None
    capacity: float | None = None
    share: float = 1.0
    sent: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.program.mesh.devices.flat[0].device_kind

    @property
    def fits(self) -> bool | None:
        """Whether a chip has the memory; None if that is not known."""
        if self.memory is None or self.capacity is None:
            return None
        return self.memory <= self.capacity

    @property
    def compute_seconds(self) -> float | None:
        """The least that the matrix products of a step take at the chip's published rate."""
        peak = peak_flops(self.kind)
        return peak and self.flops / (peak * self.program.mesh.size)

    @property
    def network_seconds(self) -> float | None:
        """The least that sending takes at the chip's published rate."""
        chip = chips.chip(self.kind)
        return chip and sum(self.sent.values()) / chip.network


def compiled(run: Experiment, *, devices: list[Any] | None, memory: float | None) -> Compiled:
    """Builds and compiles the step of a run; reads no data, computes nothing.

    devices: None: those at hand.
    memory: bytes of a chip that the step may fill, instead of what is published.

    Raises UserError where a part of the compiler is missing.
    """
    program = Program.make(
        run,
        epoch_examples=ASSUMED_EPOCH,
        fields=run.data.source.assumed_fields(),
        devices=devices,
    )
    traced = program.trace()
    model_flops = program.model_flops(traced)
    # Products inside a library's kernel are not seen.
    flops = max(matmul_flops(traced.jaxpr), model_flops)
    device = program.mesh.devices.flat[0]
    known = chips.chip(device.device_kind)
    share = gpus.share() if device.platform == 'gpu' and not memory else 1.0
    capacity = memory or (known and share * known.memory)
    began = time.monotonic()

    def result(**found: Any) -> Compiled:
        seconds = time.monotonic() - began
        return Compiled(
            program, model_flops, flops, seconds, capacity=capacity, share=share, **found
        )

    try:
        step = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if gpus.INCOMPLETE.search(str(error)):
            raise UserError(
                f'a part of the compiler for {device.device_kind} is missing: pip install '
                f'{gpus.PACKAGES}.'
            ) from error
        used = REFUSED.search(str(error))
        if not used:
            raise
        needed = float(used.group(1)) * 2 ** {'K': 10, 'M': 20, 'G': 30, 'T': 40}[used.group(2)]
        return result(memory=needed)
    sizes = step.memory_analysis()
    sent = collectives.sent(step.as_text())
    if sizes is None:
        return result(sent=sent)
    # Arguments and results of the donated state share their memory.
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return result(
        arguments=sizes.argument_size_in_bytes,
        temporary=sizes.temp_size_in_bytes,
        memory=sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes,
        sent=sent,
    )
