"""TensorBoard events, each written when it is given.

tensorboardX's own writer hands events to a thread. Where the disk is full that thread ends with a
stack trace, and the run would wait for it for ever; here the error reaches the one who writes.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """A new file of events in a folder, with the methods of tensorboardX's `SummaryWriter`.

    purge_step: TensorBoard forgets what earlier files say of this step and later ones.

    Raises OSError where something cannot be written.
    """

    def __init__(self, folder: str | Path, *, purge_step: int | None = None):
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Its name has the second; two starts within one must not share a file.
        suffix = f'.{time.time_ns()}'
        self._writer = EventsWriter(str(Path(folder) / 'events'), filename_suffix=suffix)
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(purge_step, file_version='brain.Event:2')
            self._write(purge_step, session_log=start)
        self.flush()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(step, summary=summary.scalar(name, value))

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """picture: uint8 [H,W,3]."""
        self._write(step, summary=summary.image(name, picture, dataformats='HWC'))

    def add_custom_scalars(self, layout: Mapping[str, Any]) -> None:
        """Which curves share a chart, as `SummaryWriter` takes it."""
        self._write(0, summary=summary.custom_scalars(layout))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
