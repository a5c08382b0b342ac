"""Values of one row of a table: texts, class names, scores. Each raises ValueError with what it found instead."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from deberta_jax.errors import UserError


def decode(data: bytes, name: str) -> str:
    """UTF-8 to text; `name` says in the error what it is of."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8") from None


def field(fields: Mapping[str, Any], column: str) -> Any:
    """The value of a column, which has to be there."""
    if column not in fields:
        raise UserError(f"no column {column!r}; the columns are {', '.join(map(repr, fields))}")
    value = fields[column]
    return value.item() if isinstance(value, np.generic) else value


def text_field(fields: Mapping[str, Any], column: str, *, allow_empty: bool) -> str:
    """The text of a column: not blank unless `allow_empty`, and nothing that a tokenizer cannot take."""
    return check_text(field(fields, column), column, allow_empty=allow_empty)


def check_text(text: Any, column: str, *, allow_empty: bool) -> str:
    """`text_field` of a value that was taken from a list in a column."""
    text = decode(text, f"column {column!r}") if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise UserError(f"column {column!r} holds {text!r:.40}, not text")
    if not text.strip() and not allow_empty:
        raise UserError(f"column {column!r} is empty; write a text or take the row out")
    # Both can hide behind JSON escapes, and no tokenizer can be given them.
    if "\0" in text or (not text.isascii() and re.search("[\ud800-\udfff]", text)):
        raise UserError(f"column {column!r} holds a NUL character or half a surrogate pair")
    return text


def class_name(label: Any, class_names: tuple[str, ...]) -> str:
    """The name of a class given as text, bytes, a truth value, or a number: of `class_names` where there are any."""
    if isinstance(label, bytes):
        label = decode(label, "the label")
    if class_names and isinstance(label, int):
        if not 0 <= label < len(class_names):
            raise UserError(f"label {label} is outside 0 to {len(class_names) - 1}; labels of this split may be hidden")
        return class_names[label]
    if isinstance(label, bool | int):
        return str(label).lower()
    if not isinstance(label, str):
        raise UserError(f"label {label!r:.40} is not a class name or integer; for scores set kind to 'regression'")
    if not label.strip():
        raise UserError("the label is empty")
    return label


def score_value(label: Any) -> float:
    """A finite number."""
    try:
        score = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"label {label!r:.40} is not a finite number, as regression needs")
    return score
