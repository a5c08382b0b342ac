"""What a person watches during training: progress on the screen, curves in files.

`metrics.jsonl` holds one JSON object a line: `{"step": 10, "generator_loss": 9.1, ...}` for a training step and
`{"step": 1000, "eval/generator_loss": 7.2, ...}` for an evaluation. A value that is not finite is written as null, as
JSON has no other word for it. `tensorboard/` holds the same scalars. Everything here takes plain floats: nothing waits
for a device.
"""

import functools
import json
import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deberta_jax.errors import UserError

from ..hosts.join import Hosts
from .goodput import GoodputLog, read_goodput
from .jsonl import read_records

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_INTERVALS = 20  # the speed is the mean of so many last intervals
_LINES_PER_HEADER = 20
_REFRESH_SECONDS = 0.1
_SMALLEST_BAR, _LARGEST_BAR = 4, 20
_WIDE = 105  # columns of a terminal from which the live line spells its labels out


@dataclass(frozen=True)
class _Column:
    """A metric on the screen: header of its column, label in the wide live line and in the narrow one."""

    key: str
    header: str
    label: str
    short: str


# In order of importance: a narrow screen shows the first ones.
_COLUMNS = (
    _Column("generator_loss", "gen loss", "generator", "gen"),
    _Column("discriminator_loss", "disc loss", "discriminator", "disc"),
    _Column("masked_accuracy", "mlm acc", "masked", "acc"),
    _Column("replaced_precision", "precis", "precision", "P"),
    _Column("replaced_recall", "recall", "recall", "R"),
    _Column("loss", "loss", "loss", "loss"),
    _Column("grad_norm", "grad norm", "gradient norm", "grad"),
    _Column("learning_rate", "learn rate", "rate", "rate"),
    _Column("rtd_accuracy", "rtd acc", "rtd accuracy", "rtd"),
)


class Log(Protocol):
    """What training tells a person; process 0 has a Reporter, the others have a Silence."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def resume_at(self, step: int) -> None: ...
    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None: ...
    def message(self, text: str) -> None: ...


def open_log(folder: Path, *, hosts: Hosts, total_steps: int, tokens_per_step: int, every: int) -> Log:
    """A Reporter on process 0, with the account of its time, and silence on all others."""
    if not hosts.first:
        return Silence()
    folder.mkdir(parents=True, exist_ok=True)
    goodput = GoodputLog(folder, hosts.phases)
    return Reporter(folder, total_steps=total_steps, tokens_per_step=tokens_per_step, every=every, goodput=goodput)


class Silence:
    """The log of a process that is not the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...
    def resume_at(self, step: int) -> None: ...
    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None: ...
    def message(self, text: str) -> None: ...


class Reporter:
    """Reports the metrics of a run to the screen and to `folder`; one process of a run has one.

    On a terminal one live line updates in place and messages scroll above it; elsewhere a plain line is printed every
    `every` steps. Close it, or use it in a `with` statement: the live line hides the cursor.

    Args:
      folder: receives `metrics.jsonl` and `tensorboard/`.
      total_steps: the step that ends the run.
      tokens_per_step: tokens of one global batch.
      every: steps between two plain lines.
      console: where to print; standard output by default.
      goodput: the account of this start's time; written as steps are reported, and told when the log is closed.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        total_steps: int,
        tokens_per_step: int,
        every: int,
        console: Console | None = None,
        goodput: GoodputLog | None = None,
    ) -> None:
        for name, value in (("total_steps", total_steps), ("tokens_per_step", tokens_per_step), ("every", every)):
            if value < 1:
                raise UserError(f"{name} is {value}; it has to be at least 1")
        # Here, not at the first step: where PyTorch is installed tensorboardX imports it, for 5 to 15 seconds, and the
        # other processes would wait for this one. Not with this module, which every command imports.
        from tensorboardX import SummaryWriter

        self._open_tensorboard = SummaryWriter
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._total = total_steps
        self._every = every
        self._speed = _Speed(tokens_per_step)
        self._console = console or Console()
        self._first_step: int | None = None
        self._goodput, self._reached = goodput, 0
        self._lines = open(self._folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._header = ""
        self._lines_since_header = 0
        self._live: Live | None = None
        self._last_refresh = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume_at(self, step: int) -> None:
        """Forgets what was logged after `step` (0: everything), as those steps will be taken again.

        Call it before the first `step`. The file is replaced in one move: a kill leaves the old one or the new one.
        """
        self._lines.close()
        path = self._folder / "metrics.jsonl"
        replacement = path.with_suffix(".jsonl.tmp")
        kept = [record for record in read_records(path) if record["step"] <= step]
        replacement.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(replacement, path)
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._first_step, self._reached = step + 1, step
        if self._goodput is not None:
            self._goodput.resume_at(step)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of one training step."""
        self._write(step, metrics)
        self._reached = step
        if self._goodput is not None:
            self._goodput.write(step)
        now = time.monotonic()
        self._speed.update(step, now)
        line = _Progress(step, self._total, metrics, self._speed)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._show_live(line, now)
        elif step % self._every == 0 or step == self._total:
            self._print_plain(line)

    def evaluation(self, step: int, metrics: dict[str, float], name: str = "held-out") -> None:
        """Logs an evaluation as `eval/<metric>`, on a set other than the held-out one as `eval/<name>/<metric>`."""
        prefix = "eval/" if name == "held-out" else f"eval/{name}/"
        self._write(step, {f"{prefix}{key}": value for key, value in metrics.items()})
        labels = {column.key: column.label for column in _COLUMNS}
        shown = "  ".join(f"{labels.get(key, key)} {_format(key, value)}" for key, value in metrics.items())
        self.message(f"step {step}, {name}: {shown}")
        self._speed.pause(step, time.monotonic())

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def close(self) -> None:
        """Ends the live line, leaving its last state, closes the files and tells where the time has gone."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None
        self._lines.close()
        if "_tensorboard" in self.__dict__:
            self._tensorboard.close()
        if self._goodput is not None and self._first_step is not None:
            self._goodput.write(self._reached)
            self.message(str(read_goodput(self._folder)))

    @functools.cached_property
    def _tensorboard(self) -> "SummaryWriter":
        return self._open_tensorboard(str(self._folder / "tensorboard"), purge_step=self._first_step)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        for key, value in finite.items():
            if value is not None:  # tensorboardX logs a warning for every other one
                self._tensorboard.add_scalar(key, value, step)

    def _show_live(self, line: "_Progress", now: float) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(line)
        if now - self._last_refresh >= _REFRESH_SECONDS:
            self._live.refresh()
            self._last_refresh = now

    def _print_plain(self, line: "_Progress") -> None:
        header, values = line.as_row(self._console.width)
        if header != self._header or self._lines_since_header == _LINES_PER_HEADER:
            self.message(header)
            self._header, self._lines_since_header = header, 0
        self.message(values)
        self._lines_since_header += 1


class _Speed:
    """Seconds per step over the last intervals between two logged steps.

    The time before the first logged step (compilation) and the time of evaluations do not count.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._since: tuple[int, float] | None = None
        self._intervals: deque[tuple[int, float]] = deque(maxlen=_INTERVALS)

    def update(self, step: int, now: float) -> None:
        if self._since is not None and step > self._since[0] and now > self._since[1]:
            self._intervals.append((step - self._since[0], now - self._since[1]))
        self._since = (step, now)

    def pause(self, step: int, now: float) -> None:
        if self._since is not None:
            self._since = (max(step, self._since[0]), now)

    @property
    def seconds_per_step(self) -> float:
        """NaN while unknown."""
        if not self._intervals:
            return math.nan
        return sum(seconds for _, seconds in self._intervals) / sum(steps for steps, _ in self._intervals)

    @property
    def tokens_per_second(self) -> float:
        return self._tokens_per_step / self.seconds_per_step


@dataclass(frozen=True)
class _Progress:
    """The state of a run in one line, fitted to the width of the screen."""

    step: int
    total: int
    metrics: dict[str, float]
    speed: _Speed

    def as_row(self, width: int) -> tuple[str, str]:
        """Header and values of a plain line, in columns of fixed width."""
        first = ("step".rjust(2 * len(str(self.total)) + 1), self._steps().rjust(2 * len(str(self.total)) + 1))
        last = [("tok/s".rjust(6), self._tokens().rjust(6)), ("left".rjust(8), self._left().rjust(8))]
        room = width - sum(len(header) + 2 for header, _ in [first, *last]) + 2
        cells = []
        for column, value in self._shown():
            size = max(len(column.header), 6)
            room -= size + 2
            if room < 0:
                break
            cells.append((column.header.rjust(size), value.rjust(size)))
        cells = [first, *cells, *last]
        return "  ".join(header for header, _ in cells), "  ".join(value for _, value in cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
        steps = self._steps() if wide else f"{self.step}/{_format_count(self.total)}"
        ending = f"{self._tokens()} tok/s  {self._left()}" if wide else f"{self._tokens()}/s {self._left()}"
        room = options.max_width - len(steps) - _SMALLEST_BAR - len(ending) - 3
        words = []
        for column, value in self._shown():
            word = f"{column.label if wide else column.short} {value}"
            if len(word) + 1 > room:
                break
            room -= len(word) + 1
            words.append(word)
        bar = min(_LARGEST_BAR, _SMALLEST_BAR + max(0, room))
        line = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(4):
            line.add_column(no_wrap=True)
        line.add_row(
            Text(steps),
            ProgressBar(total=self.total, completed=self.step, width=bar),
            Text(" ".join(words)),
            Text(ending, style="dim"),
        )
        yield line

    def _shown(self) -> list[tuple[_Column, str]]:
        present = [column for column in _COLUMNS if column.key in self.metrics]
        return [(column, _format(column.key, self.metrics[column.key])) for column in present]

    def _steps(self) -> str:
        return f"{self.step}/{self.total}"

    def _tokens(self) -> str:
        return _format_count(self.speed.tokens_per_second)

    def _left(self) -> str:
        return _format_seconds(max(0, self.total - self.step) * self.speed.seconds_per_step)


def _format(key: str, value: float) -> str:
    """Shares as percent, learning rates with an exponent, all else with four digits."""
    if not math.isfinite(value):
        return str(value)
    if key.endswith(("accuracy", "precision", "recall")):
        return f"{100 * value:.1f}%"
    if key == "learning_rate":
        return f"{value:.1e}"
    whole = str(int(abs(value)))
    if len(whole) > 5:
        return f"{value:.1e}"
    return f"{value:.4f}" if whole == "0" else f"{value:.{max(0, 4 - len(whole))}f}"


def _format_count(value: float) -> str:
    """950, 12.3k, 1.23M; `-` while unknown."""
    if not math.isfinite(value):
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _format_seconds(seconds: float) -> str:
    """m:ss, h:mm:ss or 3d04h; `-` while unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
