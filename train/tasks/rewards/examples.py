"""Reads the examples of a reward model: a better and a worse answer, with or without the prompt that they answer.

The columns are those of preference sets: `chosen`, `rejected`, and `prompt`. A row of tokens is `[CLS] answer [SEP]` or
`[CLS] prompt [SEP] answer [SEP]`, as for OpenAssistant's DeBERTa reward models.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from deberta_jax.errors import UserError

from ..packed import PackedExamples, PackedRows, Row
from ..sources.cells import Cells, cell_value, is_list, text_cell
from ..sources.table import Table, parse_rows

_Texts = tuple[str | None, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Preference:
    """Two answers, of which the first is the better one.

    Attributes:
      prompt: what they answer; `None` if the answers contain it.
      chosen: the better answer.
      rejected: the worse answer.
    """

    prompt: str | None
    chosen: str
    rejected: str


def read_preferences(
    table: Table, *, prompt: str | None, chosen: str, rejected: str
) -> tuple[Sequence[Preference], tuple[str, ...]]:
    """Returns all examples of a table, and notes for the user.

    Args:
      table: the table.
      prompt: the column of the prompt (default: "prompt", if there is such a column).
      chosen: the column of the better answer.
      rejected: the column of the worse answer.

    Raises:
      UserError: if a row cannot be used; the message has the file and the line.
    """
    prompts: list[bool] = []  # whether there is a column of prompts; of the first row, as of all others

    def parse(cells: Cells, number: int) -> Iterator[tuple[_Texts, bool | None]]:
        del number
        if not prompts:
            prompts.append(prompt is not None or "prompt" in cells)
        answers = [_answer(cells, column) for column in (chosen, rejected)]
        if answers[0] == answers[1]:
            raise UserError(f"columns {chosen!r} and {rejected!r} are equal; remove the row, which prefers nothing")
        text = text_cell(cells, prompt or "prompt", allow_empty=True) if prompts[0] else None
        yield (text, answers[0], answers[1]), True

    rows = PackedRows()
    for row in parse_rows(table, parse):
        rows.append(row.example)
    return PackedExamples(rows, _preference), tuple(table.notes)


def _answer(cells: Cells, column: str) -> str:
    value = cell_value(cells, column)
    if is_list(value):
        raise UserError(
            f"column {column!r} holds a list, as of the messages of a conversation; write each answer as one text, and "
            "what comes before it as the prompt"
        )
    return text_cell(cells, column, allow_empty=False)


def _preference(position: int, row: Row) -> Preference:
    del position
    return Preference(*row)
