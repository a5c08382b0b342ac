"""Where fine-tuning examples come from: local files, and tensorflow_datasets without TensorFlow. Rows, not yet labels.

A source is a local file (`.tsv`, `.csv`, `.jsonl` or `.json` with one object a line; each may end in `.gz`) or
`tfds:NAME[/CONFIG][@SPLIT]`. Nothing is dropped: a row that cannot be read stops the run and is named by file and line.
"""

import csv
import dataclasses
import gzip
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from .published import PUBLISHED, PublishedTask

Role = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Source:
    """`train.tsv`, or `tfds:glue/mnli@validation_matched` taken apart."""

    given: str
    tfds_name: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, given: str) -> Self:
        if not given.startswith("tfds:"):
            return cls(given)
        name, at, split = given.removeprefix("tfds:").partition("@")
        if not name or (at and not split):
            raise ValueError(f"{given!r} is not a source; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG@SPLIT")
        return cls(given, name, split or None)

    @property
    def published(self) -> PublishedTask | None:
        """What is known of it; None: a file, or a set that is not in the table."""
        name = (self.tfds_name or "").partition(":")[0]  # glue/mnli:2.0.0 names a version
        family = name.partition("/")[0]
        known = [task for task in PUBLISHED if task.partition("/")[0] == family]
        if known and name not in known:
            raise ValueError(f"{self.given!r} is not known; there are {', '.join(f'tfds:{task}' for task in known)}")
        return PUBLISHED.get(name)

    def with_splits(self, role: Role) -> list[Self]:
        """This source once for every split that `role` reads."""
        if self.tfds_name is None or self.split:
            return [self]
        names = (role,)
        if self.published:
            names = {"train": names, "validation": self.published.validation, "test": (self.published.test,)}[role]
        return [dataclasses.replace(self, split=name) for name in names]


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbered rows of named fields, as a file or a tensorflow_datasets split has them."""

    name: str
    unit: Literal["line", "record"]
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    class_names: tuple[str, ...] = ()  # of an integer label column, by number
    published: bool = False  # by others: an empty text is a fact of the set, not a slip of its author
    hidden_label: bool = False  # a label of -1 says "not published"

    def error(self, number: int, reason: object) -> ValueError:
        return ValueError(f"{self.name}, {self.unit} {number}: {reason}")


# ---------------------------------------------------------------------------------------------------------- files


def open_file(given: str) -> Table:
    path = Path(given).expanduser()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".tsv": _tsv_rows, ".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows}
    if suffix not in readers:
        raise ValueError(f"{given}: unknown suffix {suffix!r}; give {', '.join(readers)} (.gz allowed) or tfds:NAME")
    return Table(given, "line", readers[suffix](given, read_text(given)))


def read_text(given: str) -> str:
    """What a file says, unpacked if it ends in .gz, without line ends at its end.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, empty, or no UTF-8.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{given}: no such file")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{given}: not a whole gzip file ({error})") from None
    if (offset := data.find(b"\0")) >= 0:
        raise ValueError(
            f"{given}: NUL byte at offset {offset}, line {data.count(10, 0, offset) + 1}; save it as UTF-8"
        )
    # Line ends at the very end hold nothing; elsewhere a blank line is a row with fields missing.
    text = decode(data, given).removeprefix("\ufeff").rstrip("\r\n")
    if not text:
        raise ValueError(f"{given} is empty")
    return text


def decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8") from None


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
        raise ValueError(f"{name}, line {start}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _with_header(name: str, records: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, str]]]:
    _, header = next(records)
    if len(set(header)) != len(header):
        raise ValueError(f"{name}, line 1: a column name occurs twice in the header {', '.join(map(repr, header))}")
    for number, fields in records:
        if len(fields) != len(header):
            raise ValueError(f"{name}, line {number}: {len(fields)} fields, but the header has {len(header)}")
        yield number, dict(zip(header, fields, strict=True))


def _json_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {number}: not JSON ({error}); write one object a line") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{name}, line {number}: not a JSON object; write one object a line")
        yield number, fields


# ------------------------------------------------------------------------------------------- tensorflow_datasets


def open_table(
    source: Source, *, label_column: str, data_dir: Path | None = None, manual_dir: Path | None = None
) -> Table:
    """The rows of a file, or of one split of a set, which is downloaded and prepared where it is not yet.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it cannot be read, or has no such split.
    """
    if source.tfds_name is None:
        return open_file(source.given)
    return _open_tfds(source, label_column, data_dir, manual_dir)


def _open_tfds(source: Source, label_column: str, data_dir: Path | None, manual_dir: Path | None) -> Table:
    import tensorflow_datasets as tfds

    builder = _prepared_builder(source, data_dir, manual_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise ValueError(f"{source.given}: its records are not named columns; write it to a .jsonl file instead")
    try:
        records: Sequence[Mapping[str, Any]] = builder.as_data_source(source.split)
    except (ValueError, KeyError):
        raise ValueError(
            f"{source.given} has no split {source.split!r}; there are {', '.join(builder.info.splits)}: "
            f"write tfds:{source.tfds_name}@SPLIT"
        ) from None
    label = dict(features.items()).get(label_column)
    class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    return Table(
        f"tfds:{source.tfds_name}@{source.split}",
        "record",
        ((number, records[number]) for number in range(len(records))),
        class_names,
        published=True,
        hidden_label=bool(class_names or source.published),
    )


def _prepared_builder(source: Source, data_dir: Path | None, manual_dir: Path | None) -> Any:
    """The builder of a prepared set; prepares it as ArrayRecord, the format that needs no TensorFlow to read."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers GLUE and other older sets, which the package does lazily

    try:
        builder = tfds.builder(str(source.tfds_name), data_dir=data_dir, file_format="array_record")
    except ValueError as error:  # its message lists every set there is
        reason = str(error).partition("\n")[0]
        if "File format is already set" in reason:
            reason = "was prepared as TFRecord, which only TensorFlow reads; give another data_dir"
        raise ValueError(f"{source.given}: {reason} (tensorflow_datasets {tfds.__version__})") from None
    downloads = Path(builder.data_dir_root) / "downloads"
    manual = Path(manual_dir or downloads / "manual")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    try:
        if source.published and source.published.files[0].endswith(".zip") and not builder.is_prepared():
            _unpack(builder, downloads, manual)
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    except Exception as error:  # builders raise whatever their downloads and parsers do
        files = ", ".join(source.published.files) if source.published else "its files"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{source.given} could not be downloaded and prepared in {builder.data_dir_root} ({reason:.300}); "
            f"without internet, put {files} into {manual} or give manual_dir"
        ) from error
    return builder


def _unpack(builder: Any, downloads: Path, manual: Path) -> None:
    """Unpacks a GLUE zip where tensorflow_datasets looks for it: its own unpacking needs TensorFlow."""
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager(
        download_dir=downloads, manual_dir=manual, url_infos=builder.url_infos, dataset_name=builder.name
    )
    archive = Path(manager.download(builder.builder_config.data_url))
    target = downloads / "extracted" / f"ZIP.{archive.name}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        zipfile.ZipFile(archive).extractall(partial)
        partial.rename(target)  # at once: a half-unpacked folder is never mistaken for a whole one
