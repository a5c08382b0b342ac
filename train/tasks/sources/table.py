"""Tables of examples, and the rules that all kinds of tasks apply to their rows and labels.

No row is dropped: a row that cannot be used stops the run, and the error names its file and line.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from deberta_jax.errors import UserError

from .cells import Cells, MissingColumnError

Example = TypeVar("Example")
Label = TypeVar("Label")

_HIDDEN = "-1"  # the label of every example of a published test file
_HIDDEN_SCORES = (_HIDDEN, f"{_HIDDEN}.0")
_COLUMN_OPTIONS = "--text-column, --label-column and the like"


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
      notes: messages to the user about reading the table, which may grow until the last row is read.
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
    notes: Sequence[str] = ()
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
            options = "" if "--" in str(error) else f"; name columns with {_COLUMN_OPTIONS}"
            raise self.error(number, f"{error}{options}{self.advice}") from None
        except UserError as error:
            raise self.error(number, error) from None

    def has_no_label(self, cells: Cells, column: str) -> bool:
        """Returns whether the label of a row is missing or hidden."""
        label = cells.get(column)
        return column not in cells or (
            self.hidden_label and isinstance(label, int | float | np.number) and bool(label == -1)
        )


class ParsedRow(NamedTuple, Generic[Example, Label]):
    """An example with the number of its row and its label as the table has it; `None` if it is not published."""

    number: int
    example: Example
    label: Label | None


def parse_rows(
    table: Table, parse: Callable[[Cells, int], Iterable[tuple[Example, Label | None]]]
) -> Iterator[ParsedRow[Example, Label]]:
    """Yields all rows of a table. Nothing keeps them in memory.

    Args:
      table: the table.
      parse: turns the cells and the number of a row into examples and their labels.

    Raises:
      UserError: if a row cannot be used, only some rows have a label, or there are no rows.
    """
    first: tuple[int, bool] | None = None  # the number of the first row, and whether it lacks a label
    for number, cells in table.rows:
        with table.locate_errors(number):
            parsed = parse(cells, number)
            for example, label in parsed:
                first = first or (number, label is None)
                if (label is None) != first[1]:
                    raise UserError(f"row {first[0]} and this one differ: give every row a label, or none")
                yield ParsedRow(number, example, label)
    if first is None:
        raise UserError(f"{table.name} has no rows")


@dataclasses.dataclass
class HiddenLabels:
    """Counts the labels of a split that may stand for hidden ones: -1, as in published test files.

    A sentence may also have no label for any word (`None`).
    """

    rows: int = 0
    hidden: int = 0
    first_row: int = 0
    first_label: object = None

    def add(self, number: int, label: object) -> None:
        """Counts the label of the next row."""
        self.rows += 1
        if _is_hidden(label):
            if not self.hidden:
                self.first_row, self.first_label = number, label
            self.hidden += 1

    def all_hidden(self, table: Table, role: Literal["train", "validation", "test"]) -> bool:
        """Returns whether all labels of a held-out split are -1, so that it has none.

        The caller makes sure that -1 is not a label of training.

        Raises:
          UserError: if only some labels are -1, or the rows are not those of a test.
        """
        if not self.hidden or (self.hidden < self.rows and isinstance(self.first_label, tuple)):
            return False  # a sentence without labels is allowed among others
        if role == "test" and self.hidden == self.rows:
            return True
        advice = "give every row a label, or none" if role == "test" else "give every row a label"
        given = "-100" if isinstance(self.first_label, tuple) and None in self.first_label else _HIDDEN
        raise table.error(self.first_row, f"the label is {given}, which stands for one that is not published; {advice}")


def _is_hidden(label: object) -> bool:
    if isinstance(label, tuple):  # of the words of a sentence; `None` is a word without a label
        return bool(label) and all(tag in (None, _HIDDEN) for tag in label)
    return str(label) in _HIDDEN_SCORES
