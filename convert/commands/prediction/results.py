"""Results row by row: every row of the input has a result or an error, in the order of the input."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from deberta_jax.errors import UserError
from deberta_jax.predict.pipeline import Pipeline
from deberta_jax.predict.predictor import Predictor

from .rows import Row


class RowResult(NamedTuple):
    """A row and its result, or why it has none."""

    row: Row
    result: Any | UserError


class _Waiting(NamedTuple):
    """A row whose result is not known yet.

    Attributes:
      row: The row.
      number: Index of its item; -1 if it has none.
      error: Why it has no item, if that is so.
    """

    row: Row
    number: int
    error: UserError | None


def row_results(
    predictor: Predictor,
    pipeline: Pipeline[Any, Any],
    rows: Iterable[Row],
    to_item: Callable[[Row], Any],
    *,
    skip_bad: bool,
) -> Iterator[RowResult]:
    """Yields the result of each row as soon as it is known.

    Args:
      predictor: The model.
      pipeline: Its use.
      rows: The rows, which are read ahead of their results.
      to_item: Returns the item of a row; raises UserError for a bad one.
      skip_bad: Yield the error of a row that cannot be used (default: raise it after all results before it).

    Raises:
      UserError: A row cannot be used, and `skip_bad` is not set; or reading fails.
    """
    waiting: deque[_Waiting] = deque()
    errors: dict[int, UserError] = {}  # of items, by number
    failure: UserError | None = None  # of reading

    def items() -> Iterator[Any]:
        nonlocal failure
        number = 0
        try:
            for row in rows:
                try:
                    item = to_item(row)
                except UserError as error:
                    waiting.append(_Waiting(row, -1, error))
                    if skip_bad:
                        continue
                    return
                waiting.append(_Waiting(row, number, None))
                yield item
                number += 1
        except UserError as error:
            failure = error

    def skip(number: int, error: UserError) -> None:
        if not skip_bad:  # all rows before it have their results
            raise _advised(UserError(f"{waiting[0].row.place}: {error}"))
        errors[number] = error

    def settle() -> Iterator[RowResult]:
        """Yields the errors that come before the next result."""
        while waiting and (error := waiting[0].error or errors.pop(waiting[0].number, None)):
            row = waiting.popleft().row
            located = UserError(f"{row.place}: {error}")
            if not skip_bad:
                raise _advised(located)
            yield RowResult(row, located)

    for result in predictor.run(pipeline, items(), skip=skip):
        yield from settle()
        yield RowResult(waiting.popleft().row, result)
    yield from settle()
    if failure is not None:
        raise failure


def _advised(error: UserError) -> UserError:
    return UserError(f"{error}; add --skip-bad to continue after such rows")
