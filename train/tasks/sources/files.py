"""Reads the rows of local files: .tsv, .csv, .txt, .jsonl or .json (each also as .gz), and .parquet; or a folder."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import MissingFileError, UserError, one_line

from .cells import Cells, Unreadable
from .delimited import Reading, open_delimited
from .hub_sets import SAVED_SETS
from .json_rows import json_objects
from .table import Table
from .text_files import check_is_data, open_text

_SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
_JSON = (".jsonl", ".json", ".ndjson")
_SUFFIXES = (*_SEPARATORS, *_JSON, ".parquet")
_BATCH = 256  # rows of a Parquet file that are Python values at once
_ROLES = {"train": "train", "dev": "validation", "val": "validation", "valid": "validation"}
_ROLES |= {"validation": "validation", "test": "test"}


def open_file(given: str, *, label_column: str, reading: Reading | None = None) -> Table:
    """Returns the rows of a file, or of all files in a folder.

    Args:
      given: the path as the user wrote it.
      label_column: the column whose class names a Parquet file may contain.
      reading: how to read a file with separated columns.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the suffix is unknown or the file cannot be read.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return _open_folder(given, label_column, reading)
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        allowed = f"{', '.join((*_SEPARATORS, *_JSON))} (.gz allowed), .parquet, .conll for words, a folder"
        if path.is_file():
            with path.open("rb") as file:
                check_is_data(given, file.read(512))
        raise UserError(f"{given}: unknown suffix {suffix!r}; give {allowed} or tfds:NAME")
    if suffix == ".parquet":
        return open_parquet(given, label_column)
    text = open_text(given)
    # RACE's files, which have one object each, end in .txt.
    if suffix in _JSON or (suffix == ".txt" and re.match(r"\s*(\[\s*)?\{", text.head)):
        return Table(given, "line", json_objects(text))
    return open_delimited(text, _SEPARATORS[suffix], reading or Reading())


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _open_folder(given: str, label_column: str, reading: Reading | None) -> Table:
    """Returns the rows of all files in a folder and its subfolders, in the order of their paths."""
    folder = Path(given).expanduser()
    if any((folder / name).is_file() for name in SAVED_SETS):
        raise UserError(f"{given} is a set that `save_to_disk` of datasets wrote; give it as hf:{given}")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    known = [path for path in paths if _suffix(path) in _SUFFIXES]
    if not known:
        raise UserError(f"{given} has no file that ends in {', '.join(_SUFFIXES)}")
    roles = {_ROLES[word]: path for path in known for word in re.split("[^a-z]+", path.name.lower()) if word in _ROLES}
    if len(roles) > 1:
        names = " and ".join(path.name for path in roles.values())
        raise UserError(f"{given} has files of several splits, {names}; give one file, or a folder of one split")
    first = open_file(str(known[0]), label_column=label_column, reading=reading)
    notes = [f"{len(known):,} files read"]
    if len(known) < len(paths):
        notes.append(f"{len(paths) - len(known)} other files left out, such as {(set(paths) - set(known)).pop().name}")
    parts: list[tuple[int, Table]] = []

    def rows() -> Iterator[tuple[int, Cells]]:
        start = 0
        for path in known:
            part = first if path is known[0] else open_file(str(path), label_column=label_column, reading=reading)
            if part.class_names != first.class_names:
                raise UserError(f"{part.name} and {first.name} name different classes; convert them to class names")
            parts.append((start, part))
            last = 0
            for last, cells in part.rows:
                yield start + last, cells
            start += last + 1

    return dataclasses.replace(first, name=given, unit="record", rows=rows(), notes=(*first.notes, *notes), parts=parts)


def open_parquet(given: str, label_column: str) -> Table:
    """Returns the rows of a Parquet file; arguments and errors are those of `open_file`."""
    import pyarrow
    from pyarrow import parquet

    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        with path.open("rb") as start:
            check_is_data(given, start.read(512))
        raise UserError(f"{given}: not a Parquet file ({one_line(error):.200})") from None

    columns = file.schema_arrow.names
    if twins := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise UserError(f"{given}: the column {twins[0]!r} occurs twice; rename or remove one")

    def rows() -> Iterator[tuple[int, Cells]]:
        number = 0
        batches = file.iter_batches(_BATCH)
        while True:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise UserError(f"{given}: damaged after record {number} ({one_line(error):.200})") from None
            if batch is None:
                return
            values = [_python_values(column) for column in batch.columns]
            for row in zip(*values, strict=True):
                yield number, dict(zip(columns, row, strict=True))
                number += 1

    names = _parquet_class_names(file.schema_arrow.metadata or {}, label_column)
    return Table(given, "record", rows(), names, hidden_label=bool(names))


def _python_values(column: Any) -> list[Any]:
    """Returns the values of a column of a Parquet file."""
    try:
        return column.to_pylist()
    except Exception:  # depends on the type: text that is not UTF-8, a date too late, an unknown time zone, ...
        return [_python_value(value) for value in column]


def _python_value(value: Any) -> Any:
    try:
        return value.as_py()
    except Exception as error:
        return Unreadable(f"{type(error).__name__}, {one_line(error):.200}")


def _parquet_class_names(metadata: Mapping[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Returns the class names that Hugging Face's `datasets` writes into the schema, or nothing.

    The label column has integers, or lists of them.
    """
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]
        feature = feature.get("feature", feature)
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, AttributeError, ValueError):
        return ()
