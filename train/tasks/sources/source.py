"""The sources of fine-tuning examples: local files, and sets of tensorflow_datasets (without TensorFlow) and datasets.

A source is a local file (`.tsv`, `.csv`, `.txt`, `.jsonl` or `.json`, each also with `.gz`; or `.parquet`) or a folder
of such files, `tfds:NAME[/CONFIG][@SPLIT]`, `hf:NAME[/CONFIG][:REVISION][@SPLIT]` (see `hub_sets`), or `NAME:FILE`, a
file in the form that the authors of a set in `published` published. A source yields rows; the kinds of tasks interpret
labels.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from deberta_jax.errors import UserError, one_line
from deberta_jax.terminal import list_names

from ...task_configs import Kind
from .cells import Cells
from .delimited import Reading
from .files import open_file
from .hub_sets import open_hub_set, parse_hub_set
from .published import PUBLISHED, SHORT_NAMES, Columns, PublishedTask
from .table import Table
from .tfds_builder import prepare_builder

Role = Literal["train", "validation", "test"]

_RECORDS_AT_ONCE = 1000
_DAMAGE = (OSError, RuntimeError, ValueError)  # ArrayRecord raises RuntimeError if a checksum is wrong


@dataclasses.dataclass(frozen=True)
class Source:
    """A parsed source, such as `train.tsv`, `tfds:glue/mnli@validation_matched` or `super_glue/copa:train.jsonl`.

    Attributes:
      given: the source as the user wrote it.
      tfds_name: the name in tensorflow_datasets, if the source is one of its sets.
      hub_name: the name in datasets, or the path of a folder that it reads.
      split: the split of `tfds_name` or `hub_name`, if the user gave one.
      format_name: the published set whose file format `path` has.
      path: the path of a local file.
    """

    given: str
    tfds_name: str | None = None
    hub_name: str | None = None
    split: str | None = None
    format_name: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, given: str) -> Self:
        kind, colon, rest = given.partition(":")
        if colon and kind in ("tfds", "hf"):
            name, at, split = rest.partition("@")
            if kind == "hf":
                parse_hub_set(name)
            if not name or (at and not split):
                form = f"{kind}:NAME"
                raise UserError(f"{given!r} is not a source; write {form}, {form}/CONFIG or {form}/CONFIG@SPLIT")
            tfds_name, hub_name = (name, None) if kind == "tfds" else (None, name)
            return cls(given, tfds_name, hub_name, split=split or None)
        name = SHORT_NAMES.get(kind, kind)
        if colon and name in PUBLISHED:
            return cls(given, format_name=name, path=rest)
        family = name.partition("/")[0]
        known = [task for task in PUBLISHED if task.partition("/")[0] == family]
        if colon and known and not Path(given).exists():
            raise UserError(f"{given!r}: {name!r} is unknown; write NAME:FILE with one of {', '.join(known)}")
        return cls(given, path=given)

    @property
    def name(self) -> str:
        """The name of a task with this training source."""
        return self.tfds_name or self.format_name or self.hub_name or Path(self.given).name.partition(".")[0]

    @property
    def published(self) -> PublishedTask | None:
        """The entry in the table of published sets, if there is one."""
        if self.format_name:
            return PUBLISHED[self.format_name]
        if self.hub_name:
            return PUBLISHED.get(parse_hub_set(self.hub_name).published or "")
        name = (self.tfds_name or "").partition(":")[0]  # without a version, as in glue/mnli:2.0.0
        family = name.partition("/")[0]
        known = [task for task in PUBLISHED if task.partition("/")[0] == family]
        if known and name not in known:
            raise UserError(f"{self.given!r} is unknown; there are {', '.join(f'tfds:{task}' for task in known)}")
        return PUBLISHED.get(name)

    @property
    def builders(self) -> tuple[str, ...]:
        """The names in tensorflow_datasets whose records together are this set."""
        name, colon, version = (self.tfds_name or "").partition(":")
        builders = (self.published.builders if self.published else ()) or (name,)
        return tuple(f"{builder}{colon}{version}" for builder in builders)

    def with_splits(self, role: Role) -> list[Self]:
        """Returns one source for each split that `role` reads."""
        if self.path is not None or self.split:
            return [self]
        names = (role,)
        if self.published:
            names = {"train": names, "validation": self.published.validation, "test": (self.published.test,)}[role]
        return [dataclasses.replace(self, split=name) for name in names]


def named_splits(
    train: str | Path, validation: str | Path | None, test: str | Path | None
) -> list[tuple[str, Source, Role]]:
    """Returns the name, the source and the role of each split that a run reads.

    The order is train, validation, further validation splits, test. If `train` is a published set of
    tensorflow_datasets or datasets and there is no `validation`, the validation splits of the set are used.
    """
    source = Source.parse(str(train))
    splits: list[tuple[str, Source, Role]] = [("train", source.with_splits("train")[0], "train")]
    if validation is None and source.published and not source.format_name:
        validation = f"tfds:{source.tfds_name}" if source.tfds_name else f"hf:{source.hub_name}"
    roles: tuple[tuple[str | Path | None, Role], ...] = ((validation, "validation"), (test, "test"))
    for given, role in roles:
        for number, split in enumerate(Source.parse(str(given)).with_splits(role) if given else ()):
            # The first split is named by its role, the others by their names in the set.
            splits.append((str(split.split) if number else role, split, role))
    return splits


def columns_of(source: Source, kind: Kind, given: Columns) -> Columns:
    """Returns the columns of a published set, or the `given` columns for any other source.

    Raises:
      UserError: if the set is of another kind.
    """
    known = source.published
    if known and known.kind != kind:
        raise UserError(f"{source.given} is a set of kind '{known.kind}', which cannot be used for kind '{kind}'")
    return known.columns if known else given


def open_table(
    source: Source,
    *,
    label_column: str,
    data_dir: Path | None = None,
    manual_dir: Path | None = None,
    reading: Reading | None = None,
) -> Table:
    """Returns the rows of a file or of a split of a set, which is downloaded and prepared first if necessary.

    Args:
      source: the file or the split.
      label_column: the column of the labels.
      data_dir: the folder of prepared sets (default: that of tensorflow_datasets).
      manual_dir: the folder of archives that were downloaded by hand (default: `downloads/manual` in `data_dir`).
      reading: how to read a file with separated columns (default: by its name).

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the source cannot be read or has no such split.
    """
    if source.hub_name is not None:
        split = source.split or "train"
        table = open_hub_set(source.hub_name, split=split, label_column=label_column, data_dir=data_dir)
    elif source.path is None:
        table = _open_tfds(source, label_column, data_dir, manual_dir)
    else:
        if source.published:
            layout = {"names": source.published.file_columns, "header_names": source.published.file_header}
            reading = dataclasses.replace(reading or Reading(), **layout)
        table = open_file(source.path, label_column=label_column, reading=reading)
    return as_published(table, source, label_column=label_column) if source.published else table


def as_published(table: Table, source: Source, *, label_column: str) -> Table:
    """Returns the table with the columns and the class names of its published set."""
    known = source.published
    convert = known and (known.file_records if source.format_name else known.records)
    if known is None or convert is None:
        return table

    notes: list[str] = []

    def rows() -> Iterator[tuple[int, Cells]]:
        undecided = 0
        for number, record in table.rows:
            with table.locate_errors(number):
                converted = list(convert(record))
            for cells in converted:
                label = cells.get(label_column)
                if known.undecided and (label == known.undecided or (label == -1 and not table.hidden_label)):
                    undecided += 1
                    continue
                renamed = known.renamed.get(label) if isinstance(label, str) else None
                yield number, {**cells, label_column: renamed} if renamed else cells
        notes.extend(table.notes)
        if undecided:
            notes.append(f"{undecided} pairs without a decided label left out")

    names = tuple(known.renamed.get(name, name) for name in table.class_names)
    return dataclasses.replace(table, rows=rows(), class_names=names, published=True, notes=notes)


def _open_tfds(source: Source, label_column: str, data_dir: Path | None, manual_dir: Path | None) -> Table:
    import tensorflow_datasets as tfds

    name = f"tfds:{source.tfds_name}@{source.split}"
    parts, class_names = [], ()
    for builder_name in source.builders:
        builder = prepare_builder(
            builder_name, given=source.given, known=source.published, data_dir=data_dir, manual_dir=manual_dir
        )
        features = builder.info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise UserError(f"{source.given}: its records have no named columns; write them to a .jsonl file instead")
        try:
            builder.info.splits[source.split]  # also accepts parts of a split, such as train[:10%]
        except (KeyError, ValueError):
            raise UserError(
                f"{source.given} has no split {source.split!r}; there are {list_names(builder.info.splits)}: "
                f"write tfds:{source.tfds_name}@SPLIT"
            ) from None
        try:
            parts.append(builder.as_data_source(source.split))
        except _DAMAGE as error:
            raise _damaged(name, builder.data_dir, error) from None
        label = dict(features.items()).get(label_column)
        label = label.feature if isinstance(label, tfds.features.Sequence) else label
        class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()

    def rows() -> Iterator[tuple[int, Cells]]:
        number = 0
        for part in parts:
            for record in _read_records(part, name, number):
                yield number, record
                number += 1

    return Table(
        name, "record", rows(), class_names, published=True, hidden_label=bool(class_names or source.published)
    )


def _read_records(part: Any, name: str, first_number: int) -> Iterator[Cells]:
    """Yields the records of a set of TFDS.

    Args:
      part: the set, as tensorflow-datasets opens it for random access.
      name: of the set, for errors.
      first_number: of its first record, for errors.

    Raises:
      UserError: a record is damaged.
    """
    # Reading one by one, ArrayRecord would take time in proportion to the records of a file for each of them.
    for start in range(0, len(part), _RECORDS_AT_ONCE):
        indices = range(start, min(start + _RECORDS_AT_ONCE, len(part)))
        try:
            records = part.__getitems__(indices)
        except _DAMAGE:
            for index in indices:
                try:
                    part[index]
                except _DAMAGE as error:
                    place = f"{name}, record {first_number + index}"
                    raise _damaged(place, part.dataset_info.data_dir, error) from None
            raise
        yield from records


def _damaged(name: str, folder: Any, error: Exception) -> UserError:
    return UserError(f"{name}: damaged ({one_line(error):.200}); delete {folder} to prepare the set again")
