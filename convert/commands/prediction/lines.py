"""The lines of the output: JSON objects that tell which row of the input they belong to."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deberta_jax.errors import UserError, one_line
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import with_addresses

from ....train.tasks.sources.cells import Unreadable
from .columns import Task
from .results import RowResult
from .rows import TEXT, Row

ID = "id"
# Names of results that are no objects themselves.
_NAMES: dict[Task, str] = {
    "score": "score",
    "entities": "entities",
    "rank": "ranking",
    "fill-mask": "masks",
    "detect": "tokens",
}


@dataclasses.dataclass(frozen=True)
class Lines:
    """How lines are written.

    Attributes:
      task: The use of the model.
      id_column: The column that is copied to tell the rows apart.
      several: Whether there are several files, so that lines name theirs.
      copy: Whether all columns are copied.
    """

    task: Task
    id_column: str | None
    several: bool
    copy: bool

    def line(self, result: RowResult) -> str:
        """Returns the line of a row: where it is in the input, and its result or error."""
        values = self._place(result.row)
        if isinstance(result.result, UserError):
            values["error"] = one_line(result.result)
        else:
            values |= result_object(self.task, result.result)
        return to_json(values)

    def _place(self, row: Row) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.several and row.file is not None:
            values["file"] = with_addresses(row.file)
        values["row"] = row.index
        if isinstance(row.cells, UserError):
            return values
        column = self.id_column or ID
        if column in row.cells:
            values[ID] = json_value(row.cells[column])
        if row.file is None:
            values["input"] = row.cells[TEXT]
            return values
        if self.copy:
            values["input"] = {name: json_value(cell) for name, cell in row.cells.items()}
        return values


def result_object(task: Task, result: Any) -> dict[str, Any]:
    """Returns the JSON object of a result."""
    value = json_value(result)
    return value if isinstance(value, dict) else {_NAMES[task]: value}


def json_value(value: Any) -> Any:
    """Returns a value, of a result or of a cell, as JSON has it. Numbers have six digits: more of them depend on the
    other texts of a batch."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Unreadable):
        return {field.name: json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): json_value(item) for name, item in value.items()}
    value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
