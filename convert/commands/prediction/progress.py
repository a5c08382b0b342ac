"""The progress of a long prediction, on standard error if it is a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from deberta_jax.console import PlainConsole

from .rows import Position


@contextlib.contextmanager
def shown_progress(position: Position) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the number of finished rows.

    The bar shows how much of the input was read: rows are read ahead of their results by a few hundred, while batches
    are computed. Without a terminal nothing is shown.
    """
    console = _Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows: None
        return
    columns = TextColumn("{task.fields[rows]:,} rows"), BarColumn(), _Speed(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0, rows=0)
        yield lambda rows: progress.update(task, completed=position.share, rows=rows)


class _Console(PlainConsole):
    """A console that leaves the cursor visible: the guarded standard error shows the sequence that would hide it."""

    def show_cursor(self, show: bool = True) -> bool:
        """Does nothing and returns False, which means that nothing has changed."""
        return False


class _Speed(ProgressColumn):
    """Rows per second since the first result: the time until then is that of compiling."""

    def __init__(self) -> None:
        super().__init__()
        self._first: tuple[int, float] | None = None

    def render(self, task: Task) -> Text:
        """Returns the speed, or nothing before there is one."""
        rows, now = task.fields["rows"], time.monotonic()
        if self._first is None and rows:
            self._first = rows, now
        if self._first is None or rows == self._first[0]:
            return Text("")
        return Text(f"{(rows - self._first[0]) / (now - self._first[1]):,.1f} rows/s", style="dim")
