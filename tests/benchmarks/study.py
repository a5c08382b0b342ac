"""Work of hours in steps that are done once: a result is on disk when it is there, and the same command continues."""

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deberta_jax.atomic_files import write_file
from deberta_jax.errors import MissingFileError, UserError, one_line
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import say
from deberta_jax.train.hosts.exit_codes import DONE, StoppedError


@dataclasses.dataclass(frozen=True)
class Study:
    """A folder of results, and the time until which they may be computed.

    Attributes:
      output: the folder; a file of it has the result of one step and its settings.
      hours: the time for this start of the command (default: no limit).
    """

    output: Path
    hours: float = math.inf
    began: float = dataclasses.field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Returns the time left for the next step. Raises StoppedError if there is none."""
        left = 3600 * self.hours - (time.monotonic() - self.began)
        if left <= 0:
            raise StoppedError(f"stopped after {self.hours:g} hours; the same command continues", DONE)
        return left

    def once(self, name: str, settings: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the result of a step, which is computed and written unless the folder has it.

        Args:
          name: the file in the folder.
          settings: JSON values that the result depends on.
          compute: returns the result, as JSON values.

        Raises:
          UserError: the folder has the result of other settings.
          StoppedError: time is over.
        """
        file, settings = self.output / name, json.loads(to_json(settings))
        if file.exists():
            saved = json.loads(file.read_text(encoding="utf-8"))
            if saved["settings"] != settings:
                names = sorted({*saved["settings"], *settings})
                differing = [key for key in names if saved["settings"].get(key) != settings.get(key)]
                raise UserError(
                    f"{file} has the result of another {', '.join(differing)}; choose another --output, or delete it"
                )
            return saved["result"]
        self.seconds_left()
        result = json.loads(to_json(compute()))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, to_json({"settings": settings, "result": result}, indent=2) + "\n")
        return result


@contextlib.contextmanager
def until_time_is_over() -> Iterator[None]:
    """Prints in one line that the time of a study is over. A request to stop from outside passes through."""
    try:
        yield
    except StoppedError as stop:
        if stop.code != DONE:
            raise
        say(str(stop))


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line for an error that the user can correct."""
    try:
        yield
    except UserError as error:
        say(f"error: {one_line(error)}", error=True)
        raise SystemExit(error.exit_status) from None


def print_page(page: Path) -> None:
    """Prints a page of results, if there is one."""
    if page.exists():
        say(f"\n{page.read_text(encoding='utf-8')}\nsaved {page}")


def shown(values: Sequence[float], *, expected: int, scale: float = 100) -> str:
    """Returns the mean and the standard deviation of a cell of a table, and how many of the expected values it has."""
    if not values:
        return "-"
    text = f"{scale * statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {scale * statistics.stdev(values):.1f}"
    return text if len(values) == expected else f"{text} ({len(values)} of {expected})"


def update_page(page: Path, mark: str, parts: Iterable[str]) -> None:
    """Replaces what a page of the documentation has between `<!-- MARK -->` and the next `<!-- end -->`.

    Raises:
      MissingFileError: there is no such page.
      UserError: it does not have the two marks.
    """
    if not page.is_file():
        raise MissingFileError(f"{page} is not a file; give the page of the documentation to update")
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    before, found, after = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = after.partition(end)
    if not (found and closed):
        raise UserError(f"{page} must contain {begin} and, after it, {end}")
    write_file(page, "\n\n".join([before + begin, *parts, end + after]))
