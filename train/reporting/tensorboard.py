"""The event files of TensorBoard, written directly: tensorboardX's SummaryWriter blocks for ever after a full disk.

Its writer thread dies with the first error, and `add_scalar` then waits for room in a queue that is never emptied.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scalars:
    """Values of one step by name, and when they were logged (Unix time)."""

    step: int
    values: dict[str, float]
    logged: float = field(default_factory=time.time)


class EventFile:
    """Writes scalars to an event file, which is created with the first ones.

    Args:
      folder: receives the file.

    Attributes:
      first_step: the first step of this start. TensorBoard drops what an earlier start logged from this step on.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here and not with the first value: tensorboardX imports PyTorch where it is installed, which takes
        # 5 to 15 seconds, and the other processes would wait for this one. Not imported at the top of the module,
        # because every command imports it.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._folder, self._summary, self._events = folder, summary, event_pb2
        self._create = event_file_writer.EventsWriter
        self._writer: Any = None
        self.first_step: int | None = None

    def write(self, scalars: Scalars) -> None:
        """Writes scalars and flushes the file. Raises OSError if that fails."""
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = self._create(str(self._folder / "events"))
            if self.first_step is not None:
                start = self._events.SessionLog(status=self._events.SessionLog.START)
                for event in (self._events.Event(file_version="brain.Event:2"), self._events.Event(session_log=start)):
                    event.step = self.first_step
                    self._writer.write_event(event)
        for name, value in scalars.values.items():
            event = self._events.Event(
                step=scalars.step, wall_time=scalars.logged, summary=self._summary.scalar(name, value)
            )
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
