"""Logs that are written in threads: full disks, writers that hang, lines that were torn."""

import errno
import threading
from pathlib import Path

import pytest

from deberta_jax.train.reporting import background
from deberta_jax.train.reporting.background import LineFile, LogThread
from deberta_jax.train.reporting.jsonl import read_records

from ...support.cluster import wait_until


class Disk:
    """Writes entries, unless it is full."""

    def __init__(self) -> None:
        self.full = False
        self.entries: list[str] = []
        self.refused = 0

    def write(self, entry: str) -> None:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.entries.append(entry)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def said() -> list[str]:
    return []


def test_entries_that_a_full_disk_refuses_are_written_later_and_in_order(disk, said, monkeypatch):
    monkeypatch.setattr(background, "_LONGEST_PAUSE", 0.01)
    log = LogThread("metrics.jsonl", disk.write, retries=True, say=said.append)
    disk.full = True
    for entry in "abc":
        log.put(entry)
    wait_until(lambda: disk.refused >= 3, seconds=60, purpose="the thread")
    disk.full = False
    wait_until(lambda: disk.entries == list("abc"), seconds=60, purpose="the thread")
    log.close()
    assert said == [
        "metrics.jsonl cannot be written and is tried again: [Errno 28] No space left on device. Training goes on",
        "metrics.jsonl is written again",
    ]


def test_what_is_lost_in_the_end_is_counted(disk, said, monkeypatch):
    monkeypatch.setattr(background, "_CLOSING_PAUSE", 0.01)
    monkeypatch.setattr(background, "_SECONDS_TO_CLOSE", 0.1)
    disk.full = True
    log = LogThread("metrics.jsonl", disk.write, retries=True, say=said.append)
    for entry in "abc":
        log.put(entry)
    log.close()
    assert said[-1] == "metrics.jsonl: 3 entries could not be written"


def test_without_retries_the_first_error_ends_the_log_and_is_said_once(disk, said):
    disk.full = True
    log = LogThread("tensorboard/", disk.write, retries=False, say=said.append)
    log.put("a")
    wait_until(lambda: bool(said), seconds=60, purpose="the thread")
    disk.full = False
    for entry in "bc":
        log.put(entry)
    log.close()
    assert disk.entries == []
    assert said == [
        "tensorboard/ is no longer written: [Errno 28] No space left on device. Training goes on",
        "tensorboard/: 3 entries could not be written",
    ]


def test_a_writer_that_hangs_delays_nobody(said, monkeypatch):
    """20 entries in a log of at most 10 waiting: neither `put` nor `close` waits for the writer."""
    monkeypatch.setattr(background, "_MOST_WAITING", 10)
    monkeypatch.setattr(background, "_SECONDS_TO_CLOSE", 0.05)
    released = threading.Event()
    log = LogThread("metrics.jsonl", lambda entry: released.wait(), retries=True, say=said.append)  # type: ignore[arg-type]
    for entry in range(20):
        log.put(entry)
    log.close()
    assert said == ["metrics.jsonl: 20 entries could not be written"]
    released.set()


def test_finish_is_called_after_the_last_entry(disk, said):
    log = LogThread("log", disk.write, retries=True, say=said.append, finish=lambda: disk.write("end"))
    log.put("a")
    log.close()
    assert disk.entries == ["a", "end"]


def test_a_torn_line_is_skipped_and_its_retry_is_whole(tmp_path: Path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path)
    lines.write('{"step": 1}')
    real_open = open

    class Filling:
        """A file with room for five more bytes."""

        def __init__(self, *arguments, **options):
            self._file, self._room = real_open(*arguments, **options), 5

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            if not self._room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self._file.write(data[: self._room])
            self._room -= written
            return written

    monkeypatch.setattr("builtins.open", Filling)
    with pytest.raises(OSError, match="No space left"):
        lines.write('{"step": 2}')
    monkeypatch.undo()
    lines.write('{"step": 2}')
    assert path.read_text() == '{"step": 1}\n{"ste\n{"step": 2}\n'
    assert read_records(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("fails_before", [False, True])
def test_a_failure_at_the_end_is_said_unless_the_log_had_failed(disk, said, fails_before: bool):
    def finish() -> None:
        raise ValueError("no connection")

    disk.full = fails_before
    log = LogThread("service", disk.write, retries=False, say=said.append, finish=finish)
    log.put("a")
    log.close()
    first = "service is no longer written: [Errno 28] No space left on device. Training goes on"
    lost = "service: 1 entries could not be written"
    assert said == ([first, lost] if fails_before else ["service was not closed: no connection"])
