"""Tables of examples, and the rules that all kinds of tasks apply to their rows and labels.

No row is dropped: a row that cannot be used stops the run, and the error names its file and line.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np

from deberta_jax.errors import UserError

from .cells import Cells, MissingColumnError

Example = TypeVar("Example")
Label = TypeVar("Label")


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


def choose_label_names(
    table: Table,
    labels: Collection[str],
    official: tuple[str, ...],
    *,
    order: Callable[[Collection[str]], Iterable[str]],
) -> tuple[str, ...]:
    """Returns the names of the classes in the order of their indices.

    Args:
      table: the training table; the order of its `class_names` comes second.
      labels: the different labels of training, whose own `order` comes last.
      official: the names in the official order of a published set, or empty; this order comes first.
      order: sorts `labels`.

    Raises:
      UserError: if training has fewer than two classes.
    """
    if len(labels) < 2:
        only = f"only one class, {next(iter(labels))!r}" if labels else "no labels"
        raise UserError(f"{table.name} has {only}; training needs at least two classes")
    return official or table.class_names or tuple(order(labels))


def class_index(label: str, indices: Mapping[str, int], *, owner: str = "") -> int:
    """Returns the index of a class. `indices` has the classes of training, and `owner` follows the label in errors."""
    if label not in indices:
        raise UserError(f"label {label!r}{owner} is not a class of training: {', '.join(indices)}")
    return indices[label]
