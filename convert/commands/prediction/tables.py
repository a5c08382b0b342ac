"""Results for a person at a terminal: tables and colored texts."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from deberta_jax.console import PlainConsole, plain_text
from deberta_jax.errors import UserError
from deberta_jax.predict.predictor import Predictor
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import printable, shorten

from ..detect import print_scores
from ..fill_mask import print_masks
from .columns import Task
from .lines import json_value, result_object
from .results import RowResult
from .rows import TEXT

_MOST_CLASSES = 20  # of one text
_ENTITY = "bold cyan"


def print_tables(task: Task, model: Predictor, results: Iterable[RowResult]) -> None:
    """Prints the results of texts that were given on the command line.

    Args:
      task: The use of the model.
      model: The model.
      results: The texts, as rows with one column, and their results.
    """
    results = list(results)
    good = [
        (result.row.cells[TEXT], result.result)
        for result in results
        if not isinstance(result.row.cells, UserError) and not isinstance(result.result, UserError)
    ]
    console = PlainConsole()
    match task:
        case "classify" | "zero-shot":
            _print_classes(console, good)
        case "score":
            _print_rows(console, ("text", "score"), [(text, f"{score:.4f}") for text, score in good])
        case "rank":
            _print_rows(console, ("rank", "score", "text"), [(str(r.rank), f"{r.score:.4f}", r.text) for _, r in good])
        case _:
            for text, result in good:
                _print_result(console, task, model, text, result)
    for result in results:
        if isinstance(result.result, UserError):
            PlainConsole(stderr=True).print(str(result.result), soft_wrap=True)


def _print_result(console: PlainConsole, task: Task, model: Predictor, text: str, result: Any) -> None:
    match task:
        case "entities":
            _print_entities(console, text, result)
        case "fill-mask":
            print_masks(model, text, result)
        case "detect":
            print_scores(text, result)
        case _:
            _print_values(console, result_object(task, result))


def _print_rows(console: PlainConsole, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*header)
    for row in rows:
        table.add_row(*(plain_text(shorten(cell)) for cell in row))
    console.print(table)


def _print_classes(console: PlainConsole, results: Sequence[tuple[str, Any]]) -> None:
    """Prints the classes of one text, or the best class of each of several."""
    if len(results) == 1:
        ((_, result),) = results
        classes = list(result.probabilities.items())
        _print_rows(
            console, ("label", "probability"), [(name, f"{value:.4f}") for name, value in classes[:_MOST_CLASSES]]
        )
        return
    rows = [(text, ", ".join(result.labels), f"{result.probability:.4f}") for text, result in results]
    _print_rows(console, ("text", "label", "probability"), rows)


def _print_entities(console: PlainConsole, text: str, entities: Sequence[Any]) -> None:
    colored = plain_text(text, lines=True)
    for entity in entities:
        start, end = (len(printable(text[:offset], lines=True)) for offset in (entity.start, entity.end))
        colored.stylize(_ENTITY, start, end)
    console.print(colored, soft_wrap=True)
    rows = [(entity.text, entity.label, f"{entity.score:.4f}") for entity in entities]
    _print_rows(console, ("entity", "label", "score"), rows)


def _print_values(console: PlainConsole, values: dict[str, Any]) -> None:
    table = Table(show_header=False)
    for name, value in values.items():
        shown = value if isinstance(value, str) else to_json(json_value(value))
        table.add_row(name, plain_text(shorten(shown)))
    console.print(table)
