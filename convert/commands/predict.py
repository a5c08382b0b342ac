"""The command `deberta-jax predict MODEL [FILE|TEXT ...]`."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from deberta_jax.embedded import masked_lm_of
from deberta_jax.errors import UserError
from deberta_jax.predict.predictor import Predictor
from deberta_jax.predict.ranking import ranked
from deberta_jax.terminal import quote_names, say

from .fill_mask import warn_of_untrained_head
from .prediction.columns import Columns, Finder, Task, check_columns, find_columns
from .prediction.compiled import keep_compiled_programs
from .prediction.interrupts import noticed_interrupts
from .prediction.lines import Lines
from .prediction.origin import input_digests, model_digest, settings_values
from .prediction.output import Output, OutputFile, StandardOutput, is_complete
from .prediction.progress import shown_progress
from .prediction.results import RowResult, row_results
from .prediction.rows import TEXT, Format, Position, Reading, Row, arrived_parts, check_inputs, is_file, read_rows
from .prediction.streams import STANDARD_INPUT, input_name
from .prediction.tables import print_tables
from .prediction.uses import UseOptions, choose_task, make_pipeline

_OUTPUTS = (".jsonl", ".ndjson", ".json")
_NAMED_ERRORS = 5  # of skipped rows


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Apply a model to files or texts.

    Reads texts, standard input, or files: .txt (a text per line), .jsonl, .json, .csv, .tsv, .parquet. Writes one JSON
    object per row, in order. A stopped run with --output resumes when the same command is repeated.
    """

    COMMON: ClassVar[tuple[str, ...]] = tuple(
        "task output text-column pair-column labels query question top-k aggregation pooling windows skip-bad".split()
    )
    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "runs/sst2 'a gripping film'",
        "runs/mine test.csv --text-column review --output labels.jsonl",
        "my-nli-model tickets.txt --labels refund delivery complaint",
        "my-reranker documents.txt --query 'reset my password' --top-k 3",
    )

    model: tyro.conf.Positional[str]
    """folder of a run or a model (deberta-jax or PyTorch), a hub name, NAME or NAME@REVISION, or deberta-v3-tiny,
    which is part of the package"""
    inputs: tyro.conf.Positional[tuple[str, ...]] = ()
    """files, texts, or - for standard input (default: standard input)"""
    task: Task | None = None
    """what to do (default: what the model's head is for)"""
    output: Path | None = None
    """.jsonl file to write; until it is complete, it is named FILE.partial (default: standard output)"""
    skip_bad: bool = False
    """continue after a bad row; its line has "error" in place of a result (default: stop and name the row)"""
    copy_input: bool = False
    """put all columns of a row into its line, as "input\""""
    json: bool = False
    """print JSON for texts of the command line as well (default on a terminal: a table)"""
    format: Format | None = None
    """format of the inputs (default: by the suffix; for standard input jsonl if it begins with {, else text)"""
    header: bool = True
    """the first line of .csv and .tsv files names the columns; with --no-header the names are numbers from 0"""
    quoting: Literal["none", "csv"] | None = None
    """csv: fields may be in quotation marks; none: quotation marks are text (default: csv for .csv, none
    for .tsv)"""
    batch_size: int | None = None
    """rows of 128 tokens in a batch on each device; of longer rows fewer (default: 8 on a CPU, else 64)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """number format of the computation"""
    weights: Literal["float32", "int8"] = "float32"
    """int8: keep kernels and word embeddings in 8 bits, for a quarter of the memory (slower on a CPU); needs qwix"""
    filename: str | None = None
    """PyTorch weight file, e.g. pytorch_model.generator.bin (default: the usual names)"""
    tokenizer: str | None = None
    """folder or hub name of the tokenizer (default: that of the model)"""
    columns: Annotated[Columns, tyro.conf.arg(name="")] = Columns()
    options: Annotated[UseOptions, tyro.conf.arg(name="")] = UseOptions()


def main(config: PredictConfig) -> None:
    """Runs `deberta-jax predict`.

    Raises:
      UserError: An input or option cannot be used; see the modules of `prediction`.
      Exception: As `Predictor.load`.
    """
    config = dataclasses.replace(config, inputs=_inputs(config))
    reading = Reading(config.format, config.header, config.quoting)
    check_inputs(config.inputs, reading)
    if config.output is not None:
        if config.output.suffix not in _OUTPUTS:
            raise UserError(
                f"{config.output}: predictions are written as JSON Lines; give a name that ends in .jsonl, which "
                "pandas.read_json(FILE, lines=True) reads"
            )
        if is_complete(config.output):
            say(f"{config.output} is complete", error=True)
            return
    keep_compiled_programs()
    predictor = Predictor.load(
        masked_lm_of(config.model) if config.task == "fill-mask" and not config.filename else config.model,
        filename=config.filename,
        tokenizer=config.tokenizer,
        dtype=config.dtype,
        batch_size=config.batch_size,
        weights=config.weights,
    )
    task = config.task or choose_task(predictor, config.options, config.columns)
    _Run(config, reading, predictor, task).run()


def _inputs(config: PredictConfig) -> tuple[str, ...]:
    """Returns the inputs: standard input if none is given and it is not a terminal."""
    if config.inputs.count(STANDARD_INPUT) > 1:
        raise UserError("standard input (-) is given twice; it can be read once")
    if config.inputs:
        return config.inputs
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("no input; give files or texts after MODEL and before the options, or - for standard input")
    return (STANDARD_INPUT,)


@dataclasses.dataclass(frozen=True)
class RankedRow:
    """A document in the order of a query.

    Attributes:
      rank: Its place, from 1.
      score: Its score.
      text: The document.
    """

    rank: int
    score: float
    text: str


class _Run:
    """One run of the command."""

    def __init__(self, config: PredictConfig, reading: Reading, predictor: Predictor, task: Task) -> None:
        self._config, self._reading, self._predictor = config, reading, predictor
        self._task: Task = task
        self._orders_all = task == "rank" and config.columns.query is not None  # not each row its own documents
        check_columns(task, config.columns)
        self._pipeline = make_pipeline(task, config.options, predictor, one_query=self._orders_all)
        several = sum(map(is_file, config.inputs)) > 1
        self._lines = Lines(task, config.columns.id_column, several, config.copy_input)
        self._finders: dict[str | None, Finder] = {}
        self._position = Position()
        if task == "fill-mask":
            warn_of_untrained_head(predictor)

    def run(self) -> None:
        """Predicts all rows and writes their lines."""
        config = self._config
        rows = self._with_columns(read_rows(config.inputs, self._reading, self._position))
        if config.output is None and not config.json and sys.stdout.isatty() and not any(map(is_file, config.inputs)):
            print_tables(self._task, self._predictor, self._ordered(self._results(rows)))
            return
        with contextlib.closing(self._open_output()) as output:
            if output.done:
                say(f"{_rows(output.done)} done before", error=True)
            self._write(itertools.islice(rows, output.done, None), output)

    def _open_output(self) -> Output:
        path = self._config.output
        if path is None:
            return StandardOutput()
        digests = input_digests(self._config.inputs)
        anew = "its input cannot be read again" if digests is None else None
        anew = "documents are ordered when all have their scores" if self._orders_all else anew
        return OutputFile(path, self._origin(digests), anew=anew)

    def _origin(self, digests: dict[str, str] | None) -> dict[str, Any]:
        config = self._config
        own = ("dtype", "weights", "format", "header", "quoting", "copy_input")
        return {
            "inputs": digests,
            "model": model_digest(self._predictor),
            "task": self._task,
            **{name: vars(config)[name] for name in own},
            **settings_values(config.columns),
            **settings_values(config.options),
        }

    def _write(self, rows: Iterator[Row], output: Output) -> None:
        """Writes the lines of the rows that are not done yet."""
        done, bad = output.done, 0
        named: list[str] = []
        try:
            with noticed_interrupts() as check_interrupt, shown_progress(self._position) as show:
                for result in self._ordered(self._results(rows)):
                    check_interrupt()
                    output.write(self._lines.line(result))
                    done += 1
                    show(done)
                    if isinstance(result.result, UserError):
                        bad += 1
                        if bad <= _NAMED_ERRORS:
                            named.append(str(result.result))
        except KeyboardInterrupt:
            if self._config.output is not None:
                say(f"\n{done:,} rows are done; run the same command again to continue", error=True)
            raise
        output.finish()
        if self._config.output is not None:
            say(f"{_rows(done)} in {self._config.output}", error=True)
        if bad > _NAMED_ERRORS:
            named.append(f"and {bad - _NAMED_ERRORS:,} more")
        if bad:
            say("\n  ".join([f"{_rows(bad)} could not be used:", *named]), error=True)

    def _results(self, rows: Iterator[Row]) -> Iterator[RowResult]:
        for part in arrived_parts(rows, self._position):
            yield from row_results(self._predictor, self._pipeline, part, self._item, skip_bad=self._config.skip_bad)

    def _ordered(self, results: Iterator[RowResult]) -> Iterable[RowResult]:
        """Returns the results in the order of the rows; for one query, the best documents first."""
        if not self._orders_all:
            return results
        all_results = list(results)
        bad = [result for result in all_results if isinstance(result.result, UserError)]
        scored = [result for result in all_results if not isinstance(result.result, UserError)]
        documents = [self._item(result.row).pair for result in scored]
        scores: list[Any] = [result.result for result in scored]
        return [
            RowResult(scored[best.index].row, RankedRow(rank, best.score, best.text))
            for rank, best in enumerate(ranked(documents, scores, top_k=self._config.options.top_k), start=1)
        ] + bad

    def _with_columns(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yields the rows, after the columns of their file are known.

        Raises:
          UserError: A file lacks a column.
        """
        for row in rows:
            if row.file not in self._finders and not isinstance(row.cells, UserError):
                try:
                    finder = find_columns(self._task, self._config.columns, row.cells)
                except UserError as error:
                    raise UserError(f"{row.place}: {error}") from None
                if row.file is not None and finder.columns != (TEXT,) and finder not in self._finders.values():
                    say(f"{input_name(row.file)}: reading {quote_names(finder.columns)}", error=True)
                self._finders[row.file] = finder
            yield row

    def _item(self, row: Row) -> Any:
        if isinstance(row.cells, UserError):
            raise row.cells
        return self._finders[row.file].item(row.cells)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
