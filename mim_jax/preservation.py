"""When checkpoints are made, and which of them stay."""

import dataclasses
from pathlib import Path

from orbax.checkpoint import checkpoint_managers as managers

from mim_jax import layout, provenance
from mim_jax.clock import Clock
from mim_jax.ranges import Count, Examples, NotNegative, Number, Percent, Positive


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Config section `checkpoint`: save every so often; and always before an evaluation or
    pictures, at the end, and when SIGTERM or Ctrl-C stops the run.

    every_minutes: save as well when so long nothing was saved; none: not by the clock.
    The newest `keep` checkpoints stay, and beyond them one at every `milestone_*`.
    """

    every_minutes: Positive | None = 10.0
    every_steps: Number | None = None
    every_epochs: NotNegative | None = None
    every_examples: Examples | None = None
    every_percent: Percent | None = None
    keep: Count = 2
    milestone_steps: Number | None = None
    milestone_epochs: NotNegative | None = None
    milestone_examples: Examples | None = None
    milestone_percent: Percent | None = None


def policy(
    workdir: str | Path, config: CheckpointConfig, clock: Clock | None
) -> managers.PreservationPolicy:
    """Which checkpoints stay. One that was a milestone at the length that its run had then stays
    one, also where the run was lengthened and its milestones lie elsewhere now.
    """
    kept = [managers.LatestN(config.keep)]
    if clock is not None:

        def milestone(total_steps: int) -> int | None:
            at_length = dataclasses.replace(clock, total_steps=total_steps)
            return at_length.steps(config, 'milestone', path='checkpoint')

        def was_milestone(step: int) -> bool:
            record = provenance.read(layout.checkpoints(workdir) / str(step)) or {}
            then = milestone(record.get('total_steps', clock.total_steps))
            return bool(then) and step % then == 0

        kept.append(managers.CustomSteps(list(filter(was_milestone, layout.saved_steps(workdir)))))
        if now := milestone(clock.total_steps):
            kept.append(managers.EveryNSteps(now))
    return managers.AnyPreservationPolicy(kept)
