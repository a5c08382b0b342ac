"""What an error of the storage means, and how long it is retried."""

import errno

import numpy as np
import pytest

from deberta_jax.train.checkpoints import storage_faults
from deberta_jax.train.checkpoints.storage_faults import (
    CheckpointError,
    Fault,
    Retries,
    StorageDownError,
    StorageStuckError,
    agree_on_fault,
    read_fault,
    storage_message,
    write_fault,
)

from ...support.fake_time import fake_time


@pytest.mark.parametrize(
    ("error", "writing", "reading"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full", "damage"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), "full", "damage"),
        (OSError(errno.EIO, "Input/output error"), "outage", "outage"),
        (OSError(errno.ESTALE, "Stale file handle"), "outage", "outage"),
        (ValueError("UNAVAILABLE: HTTP 503"), "outage", "outage"),
        (TimeoutError("no answer"), "outage", "outage"),
        (OSError(errno.EROFS, "Read-only file system"), "outage", "damage"),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), "outage", "damage"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "outage", "damage"),
        (ValueError("PERMISSION_DENIED: HTTP 403"), "denied", "denied"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "denied", "denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "mistake", "damage"),
        (StorageStuckError("storage has not answered"), "mistake", "damage"),
        (TypeError("not a storage error"), "mistake", "damage"),
    ],
)
def test_meaning_of_an_error(error: Exception, writing: str, reading: str) -> None:
    assert (write_fault(error), read_fault(error)) == (writing, reading)


def test_one_process_agrees_with_itself() -> None:
    assert agree_on_fault(None, write_fault) is None
    assert agree_on_fault(OSError(errno.ENOSPC, "No space"), write_fault) == Fault("full", "the disk is full")
    assert agree_on_fault(OSError("HTTP\n503"), write_fault) == Fault("outage", "HTTP 503")


def test_only_passing_faults_ask_for_a_restart() -> None:
    assert Fault("outage", "").error is StorageDownError
    assert Fault("denied", "").error is CheckpointError


@pytest.mark.parametrize(
    ("patience", "pauses"), [(0, []), (1.5, [1, 0.5]), (100, [1, 2, 4, 8, 16, 30, 30, 9])], ids=str
)
def test_pauses_between_retries_grow_until_patience_is_over(patience: float, pauses: list[float], monkeypatch) -> None:
    clock = fake_time(monkeypatch, storage_faults)
    fault, log, times = Fault("outage", "HTTP 503"), [], [clock.now]

    def call() -> Fault:
        times.append(clock.now)
        return fault

    assert Retries(patience).retry_after(fault, call, log=log.append) is fault
    assert np.diff(times).tolist() == pauses
    assert log == ([f"HTTP 503; trying again for up to {patience:g} s"] if pauses else [])


def test_retries_end_with_success_or_a_final_fault(monkeypatch) -> None:
    clock = fake_time(monkeypatch, storage_faults)
    retries, log = Retries(60), []
    outage, denied = Fault("outage", "HTTP 503"), Fault("denied", "HTTP 403")
    results = iter([outage, None])
    assert retries.retry_after(outage, lambda: next(results), log=log.append) is None
    assert retries.retry_after(outage, lambda: denied, log=log.append) is denied
    assert retries.retry_after(denied, lambda: None, log=log.append) is denied
    assert clock.now == 1000 + 1 + 2 + 4  # an object counts on, and logs only once
    assert len(log) == 1


@pytest.mark.parametrize("stop_after", [0, 5])
def test_after_a_request_to_stop_there_is_one_more_try(monkeypatch, stop_after: float) -> None:
    clock = fake_time(monkeypatch, storage_faults)
    fault, times = Fault("full", "the disk is full"), []

    def call() -> Fault:
        times.append(clock.now - 1000)
        return fault

    retries = Retries(600, stop_requested=lambda: clock.now >= 1000 + stop_after)
    assert retries.retry_after(fault, call, log=lambda _: None) is fault
    assert times == ([0] if stop_after == 0 else [1, 3, 5])


def test_long_messages_keep_both_ends_without_the_specification() -> None:
    text = storage_message(ValueError(f"NOT_FOUND: {'path/' * 80}\n  the cause [tensorstore_spec='...']"))
    assert text.startswith("NOT_FOUND: path/")
    assert text.endswith(" the cause")
    assert len(text) == 200
    assert storage_message(KeyError()) == "KeyError"
