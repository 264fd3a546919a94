"""Save, restore, resume: weights, optimiser, step and the data iterator's state go together,
atomically, by Orbax.

A checkpoint has three items: `variables` (all trained collections; a frozen teacher is read from
its own file again), `optimizer`, and `progress` (JSON: the step, the data iterator's state, and
what else the host keeps of a run). Its metadata say what made it (`mim_jax.provenance`).
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from logging import CRITICAL, LogRecord, getLogger
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mim_jax import distributed, integrity, preservation, provenance, storage
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.layout import checkpoints as directory
from mim_jax.layout import saved_steps
from mim_jax.preservation import CheckpointConfig
from mim_jax.train_step import TrainState

# Frozen collections are not saved.
FROZEN = ('teacher',)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a work directory has: its newest intact checkpoint (None: there is none), and what is
    wrong with newer ones, by step.
    """

    step: int | None
    damaged: dict[int, str]


def find_together(workdir: str | Path) -> Found:
    """`find` by process 0, which alone is told what is damaged; the step is that of all."""
    found = Found(None, {})
    with distributed.decided_by_main(f'{workdir}: its checkpoints are damaged') as decide:
        if decide:
            found = find(workdir)
    step = distributed.as_main_says(-1 if found.step is None else found.step)
    return Found(None if step < 0 else step, found.damaged)


def find(workdir: str | Path, *, before: int | None = None) -> Found:
    """Looks at the checkpoints of a work directory from the newest (before a step) on, down to an
    intact one.

    Raises UserError where there are some and none is intact.
    """
    damaged = {}
    for step in reversed(saved_steps(workdir)):
        if before is not None and step >= before:
            continue
        folder = directory(workdir) / str(step)
        wrong = integrity.damage(folder)
        if wrong is None:
            return Found(step, damaged)
        if folder.exists():  # a run that goes on removes old ones meanwhile
            damaged[step] = wrong
    if damaged:
        when = '' if before is None else f' before step {before}'
        reasons = '; '.join(f'step {step}: {wrong}' for step, wrong in damaged.items())
        raise UserError(
            f'{workdir}: all of its checkpoints{when} are damaged ({reasons}); bring one back, or '
            'remove them to begin anew.'
        )
    return Found(None, {})


class Checkpoints:
    """The checkpoints of one work directory.

    Each is sealed with checksums once it is whole: in the background when the next one is saved,
    and at the end. damaged: the steps of checkpoints that are set aside, as STEP.damaged. made_by:
    what every checkpoint says of its making.
    """

    def __init__(
        self,
        workdir: str | Path,
        config: CheckpointConfig,
        clock: Clock | None = None,
        *,
        damaged: Iterable[int] = (),
        made_by: provenance.Record | None = None,
    ):
        _set_aside(workdir, damaged)
        logging.get_absl_logger().addFilter(_worth_saying)
        self._sealing = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._unsealed = None
        self._workdir = storage.path(workdir)
        self._beside = [path for path in self._workdir.glob('*') if path.is_file()]
        self._made_by = made_by
        self._manager = ocp.CheckpointManager(
            str(directory(workdir)),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.policy(workdir, config, clock),
                # A half-written checkpoint of a killed run is removed at the next start.
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
            item_handlers=_handlers(),
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts an asynchronous save of the state after `step` steps, and of what the host keeps
        beside it (fit for JSON, the same on every process); a step already saved is left alone.

        Raises UserError where this save or the one before it fails.
        """
        if step in self._manager.all_steps():
            return
        self._check_there()
        with self._told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(saved_variables(state.variables)),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    progress=ocp.args.JsonSave({'step': step, **progress}),
                ),
                custom_metadata=self._made_by,
            )
        # Orbax has waited for the save before this one: that one is whole.
        self._seal(step)

    def restore(
        self, abstract: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest state (or that of `step`), and the `progress` that was saved with it.

        Args:
            abstract: jax.ShapeDtypeStruct leaves with shardings, frozen collections left out.
        """
        step = self._manager.latest_step() if step is None else step
        with _readable(self._workdir, step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(saved_variables(abstract.variables)),
                    optimizer=ocp.args.StandardRestore(abstract.opt_state),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        progress = restored['progress']

        def counter(abstract: jax.ShapeDtypeStruct, count: int) -> jax.Array:
            return jax.make_array_from_callback(
                (), abstract.sharding, lambda _: np.asarray(count, abstract.dtype)
            )

        state = TrainState(
            counter(abstract.step, step),
            restored['variables'],
            restored['optimizer'],
            refused=counter(abstract.refused, progress.get('refused', 0)),
        )
        return state, progress

    def wait(self) -> None:
        """Until the save under way, if any, is on disk. Raises UserError where it fails."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with self._told():
            self._manager.wait_until_finished()
            self._seal(None)
            self._manager.close()
            self._sealing.shutdown()

    def _seal(self, next_step: int | None) -> None:
        """Seals the checkpoint before that of `next_step`, which is being written."""
        step, self._unsealed = self._unsealed, next_step
        # Orbax has forgotten by now what it is about to remove.
        kept = step is not None and step in self._manager.all_steps()
        if kept and jax.process_index() == 0:
            self._sealing.submit(integrity.seal, directory(self._workdir) / str(step))

    def _check_there(self) -> None:
        """Orbax makes folders that are missing: the files beside them tell that all is gone."""
        there = not self._beside or any(path.exists() for path in self._beside)
        if not there:
            raise gone(self._workdir)
        check_there(directory(self._workdir))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """One sentence for a save that fails: a full disk, a directory that is gone."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            # The other writes of this save fail too or never begin: Python would tell of each.
            getLogger('asyncio').setLevel(CRITICAL)
            warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
            self._check_there()
            if _is_missing(error):  # a save makes its own folders: they are being removed
                raise gone(self._workdir) from error
            raise UserError(
                f'{self._workdir}: a checkpoint could not be written ({_reason(error)}); '
                f'{newest(self._workdir)}. Mend the cause and start the same command again.'
            ) from error


def _is_missing(error: Exception) -> bool:
    """Whether a file or folder was not there, by Python's words or TensorStore's."""
    return isinstance(error, FileNotFoundError) or "os_error_code='2'" in str(error)


def _reason(error: Exception) -> str:
    """What the system said, of the page that TensorStore makes of it; else its first line, whose
    end says the cause.
    """
    text = str(error).strip() or type(error).__name__
    number = re.search(r"os_error_code='(\d+)'", text)
    line = text.splitlines()[0].partition(' [')[0]
    return os.strerror(int(number[1])) if number else line[-200:]


def _worth_saying(record: LogRecord) -> bool:
    """Whether to log a record: not the stack traces of Orbax's threads, whose error is raised
    again in the main thread, and told in a sentence.
    """
    return not (record.exc_info and f'{os.sep}orbax{os.sep}' in record.pathname)


def newest(workdir: str | Path) -> str:
    """What a run has to go on from, a phrase."""
    steps = saved_steps(workdir)
    if not steps:
        return 'there is no checkpoint'
    return f'the newest whole checkpoint is that of step {steps[-1]}'


def check_there(path: Path) -> None:
    """Raises UserError where a directory that a run writes in is no longer there: writing would
    bring back a part of it, and the run would seem to be whole.
    """
    if not storage.is_folder(path):
        raise gone(path)


def gone(path: Path) -> UserError:
    return UserError(
        f'{path} is gone: it was deleted or moved while the run wrote in it, so that the run ends '
        'here. Bring it back, or start the same command to begin anew.'
    )


def saved_variables(variables: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name not in FROZEN}


def restore_variables(
    workdir: str | Path, *, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """The trained variables of a run's newest checkpoint, or of that of `step`, and its step.

    Host arrays; neither the run's mesh nor its optimiser plays a part. Raises UserError when there
    is no such checkpoint.
    """
    abstract, step = abstract_variables(workdir, step=step)
    manager = ocp.CheckpointManager(str(directory(workdir)), item_handlers=_handlers())
    with _readable(workdir, step):
        args = ocp.args.Composite(variables=ocp.args.StandardRestore(abstract))
        variables = manager.restore(step, args=args)['variables']
    manager.close()
    return jax.device_get(variables), step


def newest_intact(workdir: str | Path, *, before: int | None = None) -> int | None:
    """The step of the checkpoint that `find` finds; a warning names each that is damaged."""
    found = find(workdir, before=before)
    for step, wrong in found.damaged.items():
        logging.warning('%s: the checkpoint of step %d is damaged: %s', workdir, step, wrong)
    return found.step


def abstract_variables(
    workdir: str | Path, *, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """What `restore_variables` restores, as jax.ShapeDtypeStruct leaves on one device."""
    steps = saved_steps(workdir)
    if not steps or (step is not None and step not in steps):
        what = 'no checkpoint' if not steps else f'no checkpoint of step {step}, only of {steps}'
        raise UserError(f'{workdir}: there is {what}; train the run first with mim_jax.main.')
    if step is None:
        step = newest_intact(workdir)
    else:
        wrong = integrity.damage(directory(workdir) / str(step))
        if wrong:
            raise UserError(f'{workdir}: the checkpoint of step {step} is damaged: {wrong}.')
    manager = ocp.CheckpointManager(str(directory(workdir)), item_handlers=_handlers())
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _readable(workdir, step):
        saved = manager.item_metadata(step)['variables'].tree
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved
        )
    manager.close()
    return abstract, step


@contextlib.contextmanager
def _readable(workdir: str | Path, step: int) -> Iterator[None]:
    """One sentence for a checkpoint without checksums whose damage shows only now."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds
        text = str(error).strip() or type(error).__name__
        reason = text.splitlines()[0][:200]
        folder = directory(workdir) / str(step)
        wrong = integrity.damage(folder)
        if wrong:
            advice = f'it is damaged: {wrong}.'
        elif 'tree structures do not match' in text:
            advice = (
                'its arrays have other names than those of this version: use the version that '
                'wrote it, or begin anew in another work directory.'
            )
        elif (folder / integrity.FILE).exists():
            advice = 'its files are intact: memory may be in use, or another version wrote it.'
        else:
            advice = 'it may be damaged, its run was killed before checksums were written.'
        raise UserError(
            f'{workdir}: the checkpoint of step {step} cannot be restored ({reason}); {advice}'
        ) from error


def _set_aside(workdir: str | Path, steps: Iterable[int]) -> None:
    """Process 0 renames checkpoints, before any process looks for the newest."""
    if jax.process_index() == 0:
        for step in steps:
            folder = directory(workdir) / str(step)
            aside = folder.with_name(f'{step}.damaged')
            for number in itertools.count(2):
                if not aside.exists():
                    break
                aside = folder.with_name(f'{step}.damaged{number}')
            storage.rename(folder, aside)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices('damaged checkpoints are set aside')


def _handlers() -> dict[str, Any]:
    """How each item of a checkpoint is written and read."""
    return {
        'variables': ocp.StandardCheckpointHandler(),
        'optimizer': ocp.StandardCheckpointHandler(),
        'progress': ocp.JsonCheckpointHandler(),
    }
