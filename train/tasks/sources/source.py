"""Where fine-tuning examples come from: local files, and tensorflow_datasets without TensorFlow. Rows, not yet labels.

A source is a local file (`.tsv`, `.csv`, `.jsonl` or `.json` with one object a line, each of which may end in `.gz`;
or `.parquet`), `tfds:NAME[/CONFIG][@SPLIT]`, or `NAME:FILE`, a file as the authors of a set in `published` publish it.
Nothing is dropped: a row that cannot be read stops the run and is named by file and line.
"""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from deberta_jax.errors import MissingFileError, UserError

from ..base import Kind
from .cells import decode
from .published import PUBLISHED, Columns, PublishedTask
from .tfds_builder import prepared_builder

Role = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Source:
    """`train.tsv`, `tfds:glue/mnli@validation_matched` or `super_glue/copa:train.jsonl`, taken apart.

    `format_name`: of the set that `path` is a published file of. `path`: None for tensorflow_datasets.
    """

    given: str
    tfds_name: str | None = None
    split: str | None = None
    format_name: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, given: str) -> Self:
        if not given.startswith("tfds:"):
            name, colon, path = given.partition(":")
            if not colon or name not in PUBLISHED:
                return cls(given, path=given)
            if not PUBLISHED[name].file_records:
                raise UserError(f"{given!r}: files of {name} are not read by its name; give {path!r} and its columns")
            return cls(given, format_name=name, path=path)
        name, at, split = given.removeprefix("tfds:").partition("@")
        if not name or (at and not split):
            raise UserError(f"{given!r} is not a source; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG@SPLIT")
        return cls(given, tfds_name=name, split=split or None)

    @property
    def name(self) -> str:
        """What a task is called that is trained on it."""
        return self.tfds_name or self.format_name or Path(self.given).name.partition(".")[0]

    @property
    def published(self) -> PublishedTask | None:
        """What is known of it; None: a file, or a set that is not in the table."""
        if self.format_name:
            return PUBLISHED[self.format_name]
        name = (self.tfds_name or "").partition(":")[0]  # glue/mnli:2.0.0 names a version
        family = name.partition("/")[0]
        known = [task for task in PUBLISHED if task.partition("/")[0] == family]
        if known and name not in known:
            raise UserError(f"{self.given!r} is not known; there are {', '.join(f'tfds:{task}' for task in known)}")
        return PUBLISHED.get(name)

    @property
    def builders(self) -> tuple[str, ...]:
        """Names in tensorflow_datasets."""
        name, colon, version = (self.tfds_name or "").partition(":")
        builders = (self.published.builders if self.published else ()) or (name,)
        return tuple(f"{builder}{colon}{version}" for builder in builders)

    def with_splits(self, role: Role) -> list[Self]:
        """This source once for every split that `role` reads."""
        if self.tfds_name is None or self.split:
            return [self]
        names = (role,)
        if self.published:
            names = {"train": names, "validation": self.published.validation, "test": (self.published.test,)}[role]
        return [dataclasses.replace(self, split=name) for name in names]


def named_splits(
    train: str | Path, validation: str | Path | None, test: str | Path | None
) -> list[tuple[str, Source, Role]]:
    """Name, source and role of every split that a run reads: train, validation, further validation splits, test.

    With a `train` from tensorflow_datasets and no `validation`, the validation splits that the set is known for.
    """
    source = Source.parse(str(train))
    splits: list[tuple[str, Source, Role]] = [("train", source.with_splits("train")[0], "train")]
    if validation is None and source.tfds_name and source.published:
        validation = f"tfds:{source.tfds_name}"
    roles: tuple[tuple[str | Path | None, Role], ...] = ((validation, "validation"), (test, "test"))
    for given, role in roles:
        for number, split in enumerate(Source.parse(str(given)).with_splits(role) if given else ()):
            splits.append((str(split.split) if number else role, split, role))
    return splits


def columns_of(source: Source, kind: Kind, given: Columns) -> Columns:
    """The columns that a set is known for, else those given. Raises ValueError for a set of another kind."""
    known = source.published
    if known and known.kind != kind:
        raise UserError(f"{source.given} is a set of kind '{known.kind}', which does not go with kind '{kind}'")
    return known.columns if known else given


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbered rows of named fields, as a file or a tensorflow_datasets split has them."""

    name: str
    unit: Literal["line", "record"]
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    class_names: tuple[str, ...] = ()  # of an integer label column, by number
    published: bool = False  # by others: an empty text is a fact of the set, not a slip of its author
    hidden_label: bool = False  # a label of -1 says "not published"
    notes: tuple[str, ...] = ()  # what a user has to be told of the reading

    def error(self, number: int, reason: object) -> ValueError:
        return ValueError(f"{self.name}, {self.unit} {number}: {reason}")


# ---------------------------------------------------------------------------------------------------------- files


def open_file(given: str, *, label_column: str) -> Table:
    path = Path(given).expanduser()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    if path.suffix == ".parquet":
        return _open_parquet(given, label_column)
    if suffix not in readers:
        allowed = f"{', '.join(readers)} (.gz allowed), .parquet, .conll and .txt for words"
        raise UserError(f"{given}: unknown suffix {suffix!r}; give {allowed} or tfds:NAME")
    return Table(given, "line", readers[suffix](given, read_text(given)))


def read_text(given: str) -> str:
    """What a file says, unpacked if it ends in .gz, without line ends at its end.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, empty, or no UTF-8.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{given}: not a whole gzip file ({error})") from None
    if (offset := data.find(b"\0")) >= 0:
        raise UserError(f"{given}: NUL byte at offset {offset}, line {data.count(10, 0, offset) + 1}; save it as UTF-8")
    # Line ends at the very end hold nothing; elsewhere a blank line is a row with fields missing.
    text = decode(data, given).removeprefix("\ufeff").rstrip("\r\n")
    if not text:
        raise UserError(f"{given} is empty")
    return text


def _tsv_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    # Not splitlines(): it also cuts at characters such as U+2028, which texts contain.
    lines = (line.removesuffix("\r").split("\t") for line in text.split("\n"))
    return _with_header(name, enumerate(lines, start=1))


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    return _with_header(name, _csv_records(name, text))


def _csv_records(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line each starts at: a quoted field may span lines."""
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the module's 128 KiB refuses long documents
    reader, start = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for record in reader:
            yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}, line {start}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _with_header(name: str, records: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, str]]]:
    _, header = next(records)
    if len(set(header)) != len(header):
        raise UserError(f"{name}, line 1: a column name occurs twice in the header {', '.join(map(repr, header))}")
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(f"{name}, line {number}: {len(fields)} fields, but the header has {len(header)}")
        yield number, dict(zip(header, fields, strict=True))


def _json_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{name}, line {number}: not JSON ({error}); write one object a line") from None
        if not isinstance(fields, dict):
            raise UserError(f"{name}, line {number}: not a JSON object; write one object a line")
        yield number, fields


def _open_parquet(given: str, label_column: str) -> Table:
    import pyarrow
    from pyarrow import parquet

    path = Path(given).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{given}: no such file")
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{given}: not a Parquet file ({' '.join(str(error).split()):.200})") from None

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        try:
            records = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            yield from enumerate(records)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{given}: damaged ({' '.join(str(error).split()):.200})") from None

    names = _parquet_class_names(file.schema_arrow.metadata or {}, label_column)
    return Table(given, "record", rows(), names, hidden_label=bool(names))


def _parquet_class_names(metadata: Mapping[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Names of the classes of an integer column, or of a column of lists of them, where the file is one of Hugging
    Face's `datasets`, which writes them into its schema."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]
        feature = feature.get("feature", feature)
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, AttributeError, ValueError):
        return ()


# ------------------------------------------------------------------------------------------- tensorflow_datasets


def open_table(
    source: Source, *, label_column: str, data_dir: Path | None = None, manual_dir: Path | None = None
) -> Table:
    """The rows of a file, or of one split of a set, which is downloaded and prepared where it is not yet.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it cannot be read, or has no such split.
    """
    known = source.published
    if source.path is None:
        table = _open_tfds(source, label_column, data_dir, manual_dir)
    else:
        table = open_file(source.path, label_column=label_column)
    return as_published(table, source, label_column=label_column) if known else table


def as_published(table: Table, source: Source, *, label_column: str) -> Table:
    """The table with the columns and the classes that its set is known for."""
    known = source.published
    convert = known and (known.file_records if source.format_name else known.records)
    if known is None or convert is None:
        return table

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, record in table.rows:
            try:
                converted = list(convert(record))
            except ValueError as error:
                raise table.error(number, error) from None
            for fields in converted:
                label = fields.get(label_column)
                renamed = known.renamed.get(label) if isinstance(label, str) else None
                yield number, {**fields, label_column: renamed} if renamed else fields

    names = tuple(known.renamed.get(name, name) for name in table.class_names)
    return dataclasses.replace(table, rows=rows(), class_names=names, published=True)


def _open_tfds(source: Source, label_column: str, data_dir: Path | None, manual_dir: Path | None) -> Table:
    import tensorflow_datasets as tfds

    records, class_names = [], ()
    for name in source.builders:
        builder = prepared_builder(
            name, given=source.given, known=source.published, data_dir=data_dir, manual_dir=manual_dir
        )
        features = builder.info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise UserError(f"{source.given}: its records are not named columns; write it to a .jsonl file instead")
        try:
            records.append(builder.as_data_source(source.split))
        except (ValueError, KeyError):
            raise UserError(
                f"{source.given} has no split {source.split!r}; there are {', '.join(builder.info.splits)}: "
                f"write tfds:{source.tfds_name}@SPLIT"
            ) from None
        label = dict(features.items()).get(label_column)
        label = label.feature if isinstance(label, tfds.features.Sequence) else label
        class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    return Table(
        f"tfds:{source.tfds_name}@{source.split}",
        "record",
        enumerate(record[number] for record in records for number in range(len(record))),
        class_names,
        published=True,
        hidden_label=bool(class_names or source.published),
    )
