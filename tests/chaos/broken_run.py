"""The run that meets the faults: its folder, its processes, and what they have printed."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..support.cluster import Process, cluster, wait_while_running
from ..support.recorded_runs import arguments, last_step

COUNT = 4
PATIENCE = 300.0  # seconds that end a hang; the bounds of the faults are shorter
_REPOSITORY = Path(__file__).parents[2]


class BrokenRun:
    """A run whose processes are started as often as faults end them.

    Args:
      home: the folder of `prepare_home`.
      output: the folder of the run, which may be on a disk that is filled up.
      files: receives what the test itself writes, `logs` and `records`.
      settings: further arguments of `recorded_runs.arguments`.

    Attributes:
      output: the folder of the run.
      processes: the processes of the current start; empty before the first one and after the end of a start.
      settings: further arguments of `recorded_runs.arguments`.
      starts: the number of starts.
    """

    def __init__(self, home: Path, output: Path, files: Path, settings: dict[str, Any]) -> None:
        self._home, self.output, self.settings = home, output, settings
        self.processes: list[Process] = []
        self.starts = 0
        self._current = contextlib.ExitStack()
        self._expected = ""  # what process 0 has to print at the next start
        for name in ("records", "logs"):
            (files / name).mkdir(parents=True)
            (output / name).symlink_to(files / name)

    def __enter__(self) -> "BrokenRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def command(self, output: Path | None = None) -> list[str]:
        """Returns the arguments of a process, with another output folder if one is given."""
        records = self.output / "records"
        return arguments(self._home, output or self.output, records=records, **self.settings)

    def printed(self, index: int) -> str:
        """Returns what process `index` has printed since the current or last start."""
        return _text(self.output / "logs" / f"{index}.log")[self._offsets[index] :]

    def start(self) -> None:
        """Starts the processes, unless they are running."""
        if self.processes:
            return
        logs = self.output / "logs"
        self._offsets = [len(_text(logs / f"{index}.log")) for index in range(COUNT)]
        self.starts += 1
        self.processes = self._current.enter_context(cluster(self.command(), logs, count=COUNT))

    def go_on(self, steps: int) -> None:
        """Waits until so many more steps are logged.

        Raises:
          AssertionError: a process has ended, or an announced message was not printed.
        """
        goal = last_step(self.output) + steps
        self.wait_for(lambda: last_step(self.output) >= goal, purpose=f"step {goal}")
        expected, self._expected = self._expected, ""
        assert expected in self.printed(0), f"the damage of an earlier round was not reported: {expected!r}"

    def wait_for(self, condition: Any, *, purpose: str, interval: float = 0.05) -> None:
        """Waits until the condition is true, while all processes run."""
        wait_while_running(self.processes, condition, seconds=PATIENCE, purpose=purpose, interval=interval)

    def expect_message(self, message: str) -> None:
        """Announces what process 0 has to print before the next step."""
        self._expected = message

    def forget_processes(self) -> None:
        """Ends a start whose processes have ended. A stopped one is killed."""
        self._current.close()
        self.processes = []

    def kill(self) -> None:
        """Kills all processes at once."""
        for process in self.processes:
            process.popen.kill()
        self.forget_processes()

    @contextlib.contextmanager
    def switched_on(self, name: str) -> Iterator[None]:
        """Switches on a fault of `recorded_pretrain` inside the context."""
        switch = self.output / "records" / name
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    @contextlib.contextmanager
    def other_start(
        self, name: str, command: Sequence[str], working_folders: dict[int, Path] | None = None
    ) -> Iterator[list[Process]]:
        """Starts processes that are not those of the run, with separate logs."""
        path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH")]))
        with cluster(
            command,
            self.output / "logs" / f"{name}-{time.monotonic_ns()}",
            count=COUNT,
            extra_environment={index: {"PYTHONPATH": path} for index in range(COUNT)},
            working_folders=working_folders or {},
        ) as processes:
            yield processes


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
