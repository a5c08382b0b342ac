"""Records of an ArrayRecord file, for threads and processes, and no slower from a large file."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deberta_jax.train.data.row_files import RowFile, create_row_file


def write(path: Path, records: list[bytes]) -> str:
    writer = create_row_file(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


def test_records_are_those_that_were_written(tmp_path: Path) -> None:
    records = [bytes([number]) * (number + 1) for number in range(10)]
    rows = RowFile(write(tmp_path / "a", records))
    copy = pickle.loads(pickle.dumps(rows))  # as grain's worker processes get it
    assert len(rows) == len(copy) == 10
    assert [rows[index] for index in range(10)] == [copy[index] for index in range(10)] == records
    for index in (-1, 10):
        with pytest.raises(IndexError):
            rows[index]


def test_threads_share_a_reader(tmp_path: Path) -> None:
    records = [number.to_bytes(2, "little") for number in range(2000)]
    rows = RowFile(write(tmp_path / "a", records))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rows.__getitem__, range(2000))) == records


def test_a_read_from_a_large_file_takes_no_longer(tmp_path: Path) -> None:
    """With ArrayRecordDataSource it took 44 times as long at these sizes, in proportion to the records of the file."""

    def seconds(count: int) -> float:
        """Returns the CPU time of a read; the shortest of several series, as other work on the machine adds to it."""
        rows = RowFile(write(tmp_path / str(count), [b"record"] * count))
        series = []
        for start in range(5):
            began = time.process_time()
            for index in range(start, count, count // 100):
                rows[index]
            series.append(time.process_time() - began)
        return min(series)

    assert seconds(200_000) < 8 * seconds(2_000)
