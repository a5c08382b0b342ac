"""Values of the cells of a row: texts, lists, class names and scores.

Every function raises UserError with the value that it found instead.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from deberta_jax.errors import UserError
from deberta_jax.terminal import quote_names

Cells = Mapping[str, Any]  # a row of a table: the value of each column


class MissingColumnError(UserError):
    """A row has no column of the name that the user gave."""


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A value that Python cannot represent, such as a date after the year 9999. It is an error only if it is used."""

    reason: str


def decode_utf8(data: bytes, name: str) -> str:
    """Returns the text of UTF-8 bytes. `name` refers to the bytes in errors."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8") from None


def preview(value: Any, length: int = 40) -> str:
    """Returns the start of a value's representation, on one line, for errors."""
    return " ".join(repr(value).splitlines())[:length]


def cell_value(cells: Cells, column: str) -> Any:
    """Returns the value of a column, which must exist."""
    if column not in cells:
        raise MissingColumnError(f"no column {column!r}; the columns are {quote_names(cells)}")
    value = _python_value(cells[column])
    if isinstance(value, Unreadable):
        raise UserError(f"column {column!r} holds a value that cannot be read: {value.reason}")
    return value


def text_cell(cells: Cells, column: str, *, allow_empty: bool) -> str:
    """Returns the text of a column (see `parse_text`). A missing value is an empty text."""
    value = cell_value(cells, column)
    return parse_text("" if allow_empty and _is_missing(value) else value, column, allow_empty=allow_empty)


def list_cell(cells: Cells, column: str, *, advice: str = "") -> list[Any]:
    """Returns the values of a column of lists. `advice` ends the error message."""
    values = cell_value(cells, column)
    if not is_list(values):
        raise UserError(f"column {column!r} holds {preview(values)}, not a list{advice}")
    return [_python_value(value) for value in values]


def object_cell(cells: Cells, column: str) -> Cells:
    """Returns the cells of a column whose value is an object with named values itself."""
    return _parse_object(cell_value(cells, column), column)


def object_list_cell(cells: Cells, column: str) -> list[Cells]:
    """Returns the values of a column of lists of objects."""
    return [_parse_object(value, column) for value in list_cell(cells, column)]


def integer_cell(cells: Cells, column: str) -> int:
    """Returns the whole number of a column, which may be written as text."""
    value = cell_value(cells, column)
    try:
        if isinstance(value, bool | float):
            raise TypeError
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"column {column!r} holds {preview(value)}, not a whole number") from None


def is_list(value: Any) -> bool:
    """Returns whether a value is a list, in any of the forms that JSON, Parquet and tensorflow_datasets use."""
    return isinstance(value, list | tuple | np.ndarray)


def parse_text(value: Any, column: str, *, allow_empty: bool) -> str:
    """Returns a text that any tokenizer accepts. `column` refers to the value in errors."""
    text = decode_utf8(value, f"column {column!r}") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise UserError(f"column {column!r} holds {preview(text)}, not text")
    if not text.strip() and not allow_empty:
        raise UserError(f"column {column!r} is empty; write a text or remove the row")
    # JSON escapes can express both, and tokenizers reject both.
    if "\0" in text or (not text.isascii() and re.search("[\ud800-\udfff]", text)):
        raise UserError(f"column {column!r} holds a NUL character or half a surrogate pair")
    return text


def lacks_label(value: Any) -> bool:
    """Returns whether the label of a test example is missing: null, NaN or blank."""
    return _is_missing(value) or (isinstance(value, str | bytes) and not value.strip())


def is_ignored_label(label: Any) -> bool:
    """Returns whether a label is -100, which means no label in PyTorch and in the sets of Hugging Face."""
    label = decode_utf8(label, "the label") if isinstance(label, bytes) else label
    return isinstance(label, int | float | str) and label in (-100, "-100")


def parse_class_name(label: Any, class_names: tuple[str, ...]) -> str:
    """Returns the name of a class. Raises UserError for -100, which is no class.

    Args:
      label: a text, bytes, a bool, or an integer, which is an index of `class_names` if there are any.
      class_names: the names of the classes of an integer column by index, or empty.
    """
    if isinstance(label, bytes):
        label = decode_utf8(label, "the label")
    if is_ignored_label(label):
        raise UserError("the label is -100, which stands for no label; give a class, or remove the row")
    if class_names and isinstance(label, int):
        if not 0 <= label < len(class_names):
            raise UserError(
                f"label {label} is outside 0 to {len(class_names) - 1}; the labels of this split may be hidden"
            )
        return class_names[label]
    if isinstance(label, bool | int):
        return str(label).lower()
    if not isinstance(label, str):
        raise UserError(f"label {preview(label)} is not a class name or integer; for scores set kind to 'regression'")
    if not label.strip():
        raise UserError("the label is empty")
    return label


def parse_score(label: Any) -> float:
    """Returns a finite number, which may be written as text."""
    try:
        score = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"label {preview(label)} is not a finite number, which regression needs")
    return score


def parse_relevance(label: Any, *, hidden: bool) -> float:
    """Returns a number from 0 to 1; if `hidden`, also -1, which stands for a label that is not published."""
    score = float(label) if isinstance(label, bool) else parse_score(label)
    if not 0 <= score <= 1 and not (hidden and score == -1):
        raise UserError(
            f"label {preview(label)} is outside 0 to 1; ranking needs 0 or 1, or a probability; for other scores set "
            "kind to 'regression'"
        )
    return score


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _python_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _parse_object(value: Any, column: str) -> Cells:
    if not isinstance(value, Mapping):
        raise UserError(f"column {column!r} holds {preview(value)}, not an object")
    return value
