"""The package array_record, which reads and writes the files of a corpus. It is not available on every platform."""

from typing import Any

from deberta_jax.errors import MissingPackageError

# Readers take the place of each record from the file, and not from a copy of its index in memory.
_INDEX_ON_DISK = {"index_storage_option": "offloaded", "footer_prefetch_bytes": "0"}


def open_row_files(paths: list[str], *, index_in_memory: bool = True) -> Any:
    """Returns the records of several ArrayRecord files as one random-access sequence of bytes.

    Args:
      paths: the files.
      index_in_memory: keep the place of each record in memory, 8 bytes a record, which saves a small read for each.

    Raises:
      MissingPackageError: the package array_record is not installed.
    """
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ModuleNotFoundError:
        raise _missing() from None
    return ArrayRecordDataSource(paths, None if index_in_memory else _INDEX_ON_DISK)


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
