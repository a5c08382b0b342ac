"""The package array_record, which reads and writes the files of a corpus. It is not available on every platform."""

from typing import Any

from deberta_jax.errors import MissingPackageError

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class RowFile:
    """The records of an ArrayRecord file, which threads may read at the same time.

    A copy for another process, by pickle, opens the file again. Each process keeps the place of every record in memory,
    8 bytes a record.
    """

    def __init__(self, path: str) -> None:
        """Opens the file.

        Raises:
          MissingPackageError: the package array_record is not installed.
          RuntimeError: the file cannot be read, or is damaged.
        """
        try:
            from array_record.python.array_record_module import ArrayRecordReader
        except ModuleNotFoundError:
            raise _missing() from None
        self._path, self._reader = path, ArrayRecordReader(path, _RANDOM_ACCESS)
        if not self._reader.ok():  # it would have 0 records
            raise RuntimeError("it is not a complete ArrayRecord file")

    def __len__(self) -> int:
        return self._reader.num_records()

    def __getitem__(self, row: int) -> bytes:
        """Raises RuntimeError, which does not name the file, if the record is damaged, and IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        # Reading by a list of places, as ArrayRecordDataSource does, takes time in proportion to the records of the
        # file: 1.3 ms with 660,000 records, where a range takes 6 microseconds.
        return self._reader.read(row, row + 1)[0]

    def __reduce__(self) -> tuple[type["RowFile"], tuple[str]]:
        return RowFile, (self._path,)


def create_row_file(path: str) -> Any:
    """Returns a writer of single records to a new ArrayRecord file, with the methods `write` and `close`.

    Raises:
      MissingPackageError: the package array_record is not installed.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ModuleNotFoundError:
        raise _missing() from None
    return ArrayRecordWriter(path, "group_size:1")  # grain reads single rows


def _missing() -> MissingPackageError:
    return MissingPackageError(
        "a corpus is stored with the package array_record, which is not installed: pip install 'deberta-jax[train]'; "
        "it has no build for Windows, where fine-tuning works but pre-training needs WSL (Windows Subsystem for Linux)"
    )
