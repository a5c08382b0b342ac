"""The progress of a run in one line, fitted to the width of the screen."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_INTERVALS = 20  # number of intervals between logged steps over which the speed is averaged
_SMALLEST_BAR, _LARGEST_BAR = 4, 20  # columns
_WIDE = 105  # columns of a terminal from which on the live line spells out its labels


@dataclass(frozen=True)
class _Column:
    """A metric on the screen: the header of its column, its label in the wide live line and in the narrow one."""

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
_LABELS = {column.key: column.label for column in _COLUMNS}


class Speed:
    """The speed of training, over the last intervals between logged steps.

    The time before the first logged step (compilation) and the time of evaluations do not count.

    Args:
      tokens_until: returns the number of tokens in the global batches of all steps up to one.
    """

    def __init__(self, tokens_until: Callable[[int], int]) -> None:
        self._tokens_until = tokens_until
        self._since: tuple[int, float] | None = None
        self._intervals: deque[tuple[int, float]] = deque(maxlen=_INTERVALS)  # tokens and seconds

    def update(self, step: int, now: float) -> None:
        """Ends an interval at this step and time, and begins the next one."""
        if self._since is not None and step > self._since[0] and now > self._since[1]:
            self._intervals.append((self._tokens_between(self._since[0], step), now - self._since[1]))
        self._since = (step, now)

    def skip(self, step: int, now: float) -> None:
        """Leaves out the time since the last logged step, which was not spent in steps."""
        if self._since is not None:
            self._since = (max(step, self._since[0]), now)

    @property
    def tokens_per_second(self) -> float:
        """NaN before the first complete interval."""
        if not self._intervals:
            return math.nan
        return sum(tokens for tokens, _ in self._intervals) / sum(seconds for _, seconds in self._intervals)

    def seconds_between(self, first: int, last: int) -> float:
        """Returns the time of the steps after `first` up to `last` at this speed; NaN before the first interval."""
        return self._tokens_between(first, last) / self.tokens_per_second

    def _tokens_between(self, first: int, last: int) -> int:
        return self._tokens_until(max(first, last)) - self._tokens_until(first)


@dataclass(frozen=True)
class ProgressLine:
    """The progress of a run after a step, as a row of a table or as a live line with a bar."""

    step: int
    total: int
    metrics: dict[str, float]
    speed: Speed

    def as_row(self, width: int) -> tuple[str, str]:
        """Returns header and values as lines of at most `width` characters, in columns of fixed width."""
        step_size = 2 * len(str(self.total)) + 1
        first = ("step".rjust(step_size), self._steps().rjust(step_size))
        last = [("tok/s".rjust(6), self._tokens().rjust(6)), ("left".rjust(8), self._time_left().rjust(8))]
        room = width - sum(len(header) + 2 for header, _ in [first, *last]) + 2
        cells = []
        for column, value in self._columns():
            size = max(len(column.header), 6)
            room -= size + 2
            if room < 0:
                break
            cells.append((column.header.rjust(size), value.rjust(size)))
        cells = [first, *cells, *last]
        return "  ".join(header for header, _ in cells), "  ".join(value for _, value in cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Renders the live line: as many metrics as fit, and a bar that takes the remaining width."""
        wide = options.max_width >= _WIDE
        steps = self._steps() if wide else f"{self.step}/{format_count(self.total)}"
        ending = f"{self._tokens()} tok/s  {self._time_left()}" if wide else f"{self._tokens()}/s {self._time_left()}"
        room = options.max_width - len(steps) - _SMALLEST_BAR - len(ending) - 3  # three spaces between four cells
        words = []
        for column, value in self._columns():
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

    def _columns(self) -> list[tuple[_Column, str]]:
        present = [column for column in _COLUMNS if column.key in self.metrics]
        return [(column, format_metric(column.key, self.metrics[column.key])) for column in present]

    def _steps(self) -> str:
        return f"{self.step}/{self.total}"

    def _tokens(self) -> str:
        return format_count(self.speed.tokens_per_second)

    def _time_left(self) -> str:
        return format_seconds(self.speed.seconds_between(self.step, self.total))


def describe_metrics(metrics: dict[str, float]) -> str:
    """Returns the metrics in one line of text, with the labels of the live line."""
    return "  ".join(f"{_LABELS.get(key, key)} {format_metric(key, value)}" for key, value in metrics.items())


def format_metric(key: str, value: float) -> str:
    """Returns learning rates with an exponent, and everything else with four digits. Shares are fractions."""
    if not math.isfinite(value):
        return str(value)
    if key == "learning_rate":
        return f"{value:.1e}"
    whole = str(int(abs(value)))
    if len(whole) > 5:
        return f"{value:.1e}"
    return f"{value:.4f}" if whole == "0" else f"{value:.{max(0, 4 - len(whole))}f}"


def format_count(value: float) -> str:
    """Returns a count such as 950, 12.3k or 1.23M, and `-` for NaN."""
    if not math.isfinite(value):
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # from here on three digits round up to the next unit: 1k, not 1e+03
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """Returns a duration as m:ss, h:mm:ss or 3d04h, and `-` for NaN."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
