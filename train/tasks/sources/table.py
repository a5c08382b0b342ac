"""Tables of examples, and the rules that all kinds of tasks apply to their rows and labels.

No row is dropped: a row that cannot be used stops the run, and the error names its file and line.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np

from deberta_jax.errors import UserError

from .cells import Cells, MissingColumnError

Example = TypeVar("Example")
Label = TypeVar("Label")

_HIDDEN = "-1"  # the label of every example of a published test file


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbered rows of named cells, from a file or from a split of a tensorflow_datasets set.

    Attributes:
      name: the name of the table in errors.
      unit: what the numbers of the rows count.
      rows: number and cells of each row; they can be read once.
      class_names: the names of the classes of an integer label column by index, or empty.
      published: whether others published the data, so that an empty text is not a mistake of the user.
      hidden_label: whether a label of -1 means that the label is not published.
      notes: messages to the user about reading the table.
      advice: what to do if a column is missing, which ends that error.
      parts: for a table of several files, the number that the rows of each begin with, and its table; it grows while
        the rows are read.
    """

    name: str
    unit: Literal["line", "record"]
    rows: Iterable[tuple[int, Cells]]
    class_names: tuple[str, ...] = ()
    published: bool = False
    hidden_label: bool = False
    notes: tuple[str, ...] = ()
    advice: str = ""
    parts: Sequence[tuple[int, "Table"]] = ()

    def error(self, number: int, reason: object) -> UserError:
        """Returns an error that names the table, or its part, and a row."""
        for start, part in reversed(self.parts):
            if start <= number:
                return part.error(number - start, reason)
        return UserError(f"{self.name}, {self.unit} {number}: {reason}")

    @contextlib.contextmanager
    def locate_errors(self, number: int) -> Iterator[None]:
        """Adds the table and a row to each UserError that is raised inside the block."""
        try:
            yield
        except MissingColumnError as error:
            raise self.error(number, f"{error}{self.advice}") from None
        except UserError as error:
            raise self.error(number, error) from None

    def has_no_label(self, cells: Cells, column: str) -> bool:
        """Returns whether the label of a row is missing or hidden."""
        label = cells.get(column)
        return column not in cells or (
            self.hidden_label and isinstance(label, int | float | np.number) and bool(label == -1)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedRow(Generic[Example, Label]):
    """An example with the number of its row and its label as the table has it; `None` if it is not published."""

    number: int
    example: Example
    label: Label | None


def parse_rows(
    table: Table, parse: Callable[[Cells, int], Iterable[tuple[Example, Label | None]]]
) -> list[ParsedRow[Example, Label]]:
    """Reads all rows of a table.

    Args:
      table: the table.
      parse: turns the cells and the number of a row into examples and their labels.

    Raises:
      UserError: if a row cannot be used, only some rows have a label, or there are no rows.
    """
    rows: list[ParsedRow[Example, Label]] = []
    for number, cells in table.rows:
        with table.locate_errors(number):
            for example, label in parse(cells, number):
                if rows and (label is None) != (rows[0].label is None):
                    raise UserError(f"row {rows[0].number} and this one differ: give every row a label, or none")
                rows.append(ParsedRow(number, example, label))
    if not rows:
        raise UserError(f"{table.name} has no rows")
    return rows


def without_hidden_labels(
    table: Table, rows: list[ParsedRow[Example, Label]], role: Literal["train", "validation", "test"]
) -> list[ParsedRow[Example, Label]]:
    """Returns held-out rows without their labels if all labels are -1, as in published test files.

    The caller makes sure that -1 is not a label of training. A sentence may also have no label for any word (`None`).

    Raises:
      UserError: if only some labels are -1, or the rows are not those of a test.
    """
    hidden = [row for row in rows if _is_hidden(row.label)]
    if not hidden or (len(hidden) < len(rows) and isinstance(rows[0].label, tuple)):
        return rows  # a sentence without labels is allowed among others
    if role == "test" and len(hidden) == len(rows):
        return [dataclasses.replace(row, label=None) for row in rows]
    advice = "give every row a label, or none" if role == "test" else "give every row a label"
    given = "-100" if isinstance(hidden[0].label, tuple) and None in hidden[0].label else _HIDDEN
    raise table.error(hidden[0].number, f"the label is {given}, which stands for one that is not published; {advice}")


def _is_hidden(label: object) -> bool:
    if isinstance(label, tuple):  # of the words of a sentence; `None` is a word without a label
        return bool(label) and all(tag in (None, _HIDDEN) for tag in label)
    return str(label) in (_HIDDEN, f"{_HIDDEN}.0")
