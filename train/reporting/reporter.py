"""The log of a run: progress on the screen, metrics in files.

`metrics.jsonl` holds one JSON object per line: `{"step": 10, "generator_loss": 9.1, ...}` for a training step and
`{"step": 1000, "eval/generator_loss": 7.2, ...}` for an evaluation. A value that is not finite is written as null,
because JSON has no NaN. `tensorboard/` holds the same scalars, and `services` receive them.

No call waits for a device or a disk: all values are plain floats, and threads write the files (see `background`).
Lines of metrics.jsonl and goodput.jsonl that cannot be written are tried again. After an error the file of TensorBoard
is given up.
"""

import contextlib
import functools
import math
import operator
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import discard, message_text

from ..hosts.join import Hosts
from .background import LineFile, LogThread
from .goodput import FILE as GOODPUT_FILE
from .goodput import GoodputLog, read_goodput
from .jsonl import read_records, write_records
from .progress import ProgressLine, Speed, describe_metrics
from .services import LoggedRun, Service, open_service
from .tensorboard import EventFile, Scalars

_LINES_PER_HEADER = 20
_REFRESH_SECONDS = 0.1


class Reporter(Protocol):
    """The log of a run: process 0 has a `RunReporter`, the other processes have a `SilentReporter`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def resume_at(self, step: int) -> None: ...
    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None: ...
    def message(self, text: str) -> None: ...
    def flush(self) -> None: ...


def open_reporter(
    folder: Path,
    *,
    hosts: Hosts,
    total_steps: int,
    tokens_per_step: int | Callable[[int], int],
    every: int,
    run: LoggedRun | None = None,
) -> Reporter:
    """Returns a `RunReporter` with goodput on process 0, and a `SilentReporter` on all others.

    `run` has the services that receive the metrics as well (default: none do).
    """
    if not hosts.first:
        return SilentReporter()
    folder.mkdir(parents=True, exist_ok=True)
    return RunReporter(
        folder,
        total_steps=total_steps,
        tokens_per_step=tokens_per_step,
        every=every,
        goodput=GoodputLog(hosts.phases),
        services={name: open_service(name, run) for name in run.services} if run else {},
    )


class RunConsole(PlainConsole):
    """Standard output whose reader may go away, and which may be a file on a full disk: training goes on.

    rich would end the process when the reader is gone.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(sys.stdout)


class SilentReporter:
    """The log of all processes but the first: discards everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
    def resume_at(self, step: int) -> None: ...
    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None: ...
    def message(self, text: str) -> None: ...
    def flush(self) -> None: ...


class RunReporter:
    """Reports the metrics of a run on the screen and in files.

    On a terminal one live line updates in place and messages scroll above it; elsewhere a plain line is printed every
    `every` steps. Close it, or use it in a `with` statement: the live line hides the cursor.

    Args:
      folder: receives `metrics.jsonl` and `tensorboard/`.
      total_steps: the last step of the run; 0 if the run only evaluates.
      tokens_per_step: number of tokens in a global batch, at least 1; or a function that returns the number of tokens
        in all steps up to one, if batches differ.
      every: number of steps between two plain lines, at least 1.
      console: where to print (default: standard output).
      goodput: records how this process spends its time; a summary is printed when the log is closed (default: none).
      services: receive the metrics as well, by name (default: none).
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        total_steps: int,
        tokens_per_step: int | Callable[[int], int],
        every: int,
        console: Console | None = None,
        goodput: GoodputLog | None = None,
        services: Mapping[str, Service] = MappingProxyType({}),
    ) -> None:
        for name, value in (("tokens_per_step", tokens_per_step), ("every", every)):
            if not callable(value) and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._total = total_steps
        self._every = every
        self._speed = Speed(
            tokens_per_step if callable(tokens_per_step) else functools.partial(operator.mul, tokens_per_step)
        )
        self._console = console or RunConsole()
        self._goodput, self._reached = goodput, 0
        self._metrics, self._goodput_lines = self._open_log("metrics.jsonl"), self._open_log(GOODPUT_FILE)
        self._events = EventFile(self._folder / "tensorboard")
        self._tensorboard = LogThread(
            "tensorboard/", self._events.write, retries=False, say=self.message, finish=self._events.close
        )
        self._services = [
            LogThread(name, service.write, retries=False, say=self.message, finish=service.close)
            for name, service in services.items()
        ]
        self._header = ""
        self._lines_since_header = 0
        self._live: Live | None = None  # started with the first step, so that earlier messages stay above it
        self._last_refresh = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume_at(self, step: int) -> None:
        """Removes what was logged after `step` (0 removes everything), because those steps will be repeated.

        Call it before the first `step`. The file is replaced atomically.
        """
        path = self._folder / "metrics.jsonl"
        records = read_records(path, log=self.message) if path.is_file() else []
        kept = [record for record in records if record["step"] <= step] if step else []
        write_records(path, kept)
        self._events.first_step, self._reached = (step + 1 if step else 0), step
        if self._goodput is not None:
            self._goodput.resume_at(step)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of one training step."""
        self._write(step, metrics)
        self._reached = step
        self._write_goodput()
        now = time.monotonic()
        self._speed.update(step, now)
        line = ProgressLine(step, self._total, metrics, self._speed)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._show_live(line, now)
        elif step % self._every == 0 or step == self._total:
            self._print_plain(line)

    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None:
        """Logs an evaluation as `eval/<metric>`, or as `eval/<name>/<metric>` for a split other than "held-out"."""
        prefix = "eval/" if name == "held-out" else f"eval/{name}/"
        self._write(step, {f"{prefix}{key}": value for key, value in metrics.items()})
        self.message(f"step {step}, {name}: {describe_metrics(metrics)}")
        self._speed.skip(step, time.monotonic())

    def message(self, text: str) -> None:
        """Prints a line above the live line, with control characters made visible and its length bounded."""
        with contextlib.suppress(OSError):  # what cannot be shown is in metrics.jsonl
            self._console.print(plain_text(message_text(text)), soft_wrap=not self._console.is_terminal)

    def flush(self) -> None:
        """Waits until metrics.jsonl holds everything that was logged; gives up after some seconds if it cannot."""
        self._metrics.flush()

    def close(self) -> None:
        """Leaves the live line in its last state, closes the files and prints the goodput."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.refresh()
                self._live.stop()
            self._live = None
        has_begun = self._goodput is not None and self._events.first_step is not None
        if has_begun:
            self._write_goodput()
        for log in (self._metrics, self._goodput_lines, self._tensorboard, *self._services):
            log.close()
        if has_begun:
            with contextlib.suppress(FileNotFoundError):  # nothing could be written
                self.message(str(read_goodput(self._folder)))

    def _open_log(self, name: str) -> LogThread[str]:
        return LogThread(name, LineFile(self._folder / name).write, retries=True, say=self.message)

    def _write_goodput(self) -> None:
        if self._goodput is not None:
            self._goodput_lines.put(self._goodput.account(self._reached))

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        self._metrics.put(to_json({"step": step, **metrics}))
        # tensorboardX logs a warning for each value that is not finite.
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        for log in (self._tensorboard, *self._services):
            log.put(Scalars(step, finite))

    def _show_live(self, line: ProgressLine, now: float) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
        with contextlib.suppress(OSError):  # the terminal was closed
            self._live.start()  # does nothing if it has started
            self._live.update(line)
            if now - self._last_refresh >= _REFRESH_SECONDS:
                self._live.refresh()
                self._last_refresh = now

    def _print_plain(self, line: ProgressLine) -> None:
        header, values = line.as_row(self._console.width)
        if header != self._header or self._lines_since_header == _LINES_PER_HEADER:
            self.message(header)
            self._header, self._lines_since_header = header, 0
        self.message(values)
        self._lines_since_header += 1
